"""Pictures of samples: one row per prompt, one column per sample."""

import textwrap
import unicodedata
import warnings
from functools import cache
from importlib import resources, util
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

# For what Matplotlib's own font lacks: Chinese, Japanese and Korean; emoji.
FONTS = {"noto_cjk_sans_jp_regular": "NotoSansCJKjp-Regular.otf", "manimgx_fonts": "NotoEmoji[wght].ttf"}
LINE, LINES = 34, 8  # of a caption: columns, and what fits beside an image


def save_grid(file: Path, rows: list[tuple[str, np.ndarray]], titles: list[list[str]] | None = None) -> None:
    """Write the picture of `grid_figure`. What fails is said in one line: a picture never ends a run."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("ignore")
            warnings.filterwarnings("always", "Glyph .* missing")  # it is drawn as a box
            grid_figure(rows, titles).savefig(file)
        if caught:
            _offer_fonts()
    except Exception as error:
        print(f"{file}: no picture: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)


def grid_figure(rows: list[tuple[str, np.ndarray]], titles: list[list[str]] | None = None) -> Figure:
    """A picture of captioned rows. Captions are text as it stands, in lines; long ones are cut.

    Args:
        rows: caption and images (uint8 [G, H, W, 3]) of each row.
        titles: a line above each image, for example its reward.
    """
    columns = max(len(images) for _, images in rows)
    figure = Figure(
        figsize=(columns * 1.1 + 2.2, len(rows) * (1.35 if titles else 1.15)), dpi=100, layout="constrained"
    )
    axes = figure.subplots(len(rows), columns, squeeze=False)
    text = {"fontfamily": _families(), "parse_math": False}
    for r, (caption, images) in enumerate(rows):
        axes[r, 0].set_ylabel(_in_lines(caption), rotation=0, ha="right", va="center", fontsize=8, **text)
        for c in range(columns):
            axes[r, c].set(xticks=[], yticks=[], anchor="W")  # else the caption takes the image's margin, and more
            if c < len(images):
                axes[r, c].imshow(images[c])
                axes[r, c].set_title(titles[r][c] if titles else "", fontsize=7, pad=2, **text)
    return figure


def _in_lines(caption: str) -> str:
    wide = any(unicodedata.east_asian_width(character) in "WF" for character in caption)
    return textwrap.fill(caption, LINE // 2 if wide else LINE, max_lines=LINES, placeholder=" …")


@cache  # once is enough
def _offer_fonts() -> None:
    """Say which packages have the characters that are drawn as boxes, unless they are installed."""
    missing = [package.replace("_", "-") for package in FONTS if not util.find_spec(package)]
    if missing:
        print(f"pictures show boxes for characters without a font; pip install {' '.join(missing)}", flush=True)


@cache
def _families() -> list[str]:
    """Names of the fonts in which a character is looked up, in this order."""
    names = ["DejaVu Sans"]
    for package, file in FONTS.items():
        if util.find_spec(package):
            font = str(resources.files(package).joinpath(file))
            font_manager.fontManager.addfont(font)
            names.append(font_manager.get_font(font).family_name)
    return names
