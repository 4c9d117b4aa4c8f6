"""Pictures of samples: captions as they stand, whatever they hold."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from simplear_rl.report import grids
from simplear_rl.report.grids import FONTS, grid_figure, save_grid

IMAGES = np.full((2, 16, 16, 3), 99, np.uint8)
CAPTIONS = [
    "a sign $^$",
    "$$ and $5 {x_",
    "a\\\\frac{1}{2} # % & ~",
    "\u4e00\u53ea\u732b\u5728\u57ab\u5b50\u4e0a",
    "a family \U0001f468\u200d\U0001f469\u200d\U0001f467 in a park",
    "\u0645\u06cc\u200c \u2764\ufe0f",
    "\ud55c\uad6d \u3042\u30a2",
    "a\x07\tb",
    " ",
    "x" * 3000,
    "a very long caption " * 100,
    "\u732b" * 400,
]


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("titles", [None, [["$^$", "0.5"]]])
def test_any_caption_is_drawn_beside_images_of_full_size(tmp_path, capsys, caption, titles):
    save_grid(tmp_path / "grid.png", [(caption, IMAGES)], titles)
    assert "no picture" not in capsys.readouterr().out
    picture = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    drawn = (picture == 99).all(-1)
    assert drawn.sum() > 2 * 60 * 60
    assert picture.shape[:2] == ((135 if titles else 115), 440)


def ink(caption, images=IMAGES):
    figure = grid_figure([(caption, images)])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    label = figure.axes[0].yaxis.label.get_window_extent()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, 0]
    return pixels[int(label.y0) : int(label.y1) + 1, int(label.x0) : int(label.x1) + 1]


@pytest.mark.parametrize(
    ("package", "text"), [("noto_cjk_sans_jp_regular", "\u732b\u72ac"), ("manimgx_fonts", "\U0001f9a4\U0001f9cb")]
)
def test_characters_that_matplotlib_lacks_come_from_the_packages_of_fonts(package, text):
    assert package in FONTS
    pytest.importorskip(package)
    one, other = ink(text[0]), ink(text[1])
    assert one.shape != other.shape or (one != other).any()  # and not the same box twice


@pytest.mark.parametrize("caption", ["a red circle<|soi|> on a mat", "a b c d e f g h i j k l m n o p q r s t u v"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 1), (1, 2), (4, 4)])
@pytest.mark.parametrize("titled", [False, True])
def test_captions_are_whole(caption, rows, columns, titled):
    images = IMAGES[:1].repeat(columns, 0)
    figure = grid_figure([(caption, images)] * rows, [["0.5"] * columns] * rows if titled else None)
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes[::columns]:
        assert axes.yaxis.label.get_window_extent().x0 >= 0


def test_packages_of_fonts_are_offered_once_to_who_needs_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grids, "FONTS", {"fonts_of_nobody": "none.otf"})
    grids._families.cache_clear()
    grids._offer_fonts.cache_clear()
    for caption in "a red circle", "\u732b", "\u72ac":
        save_grid(tmp_path / "grid.png", [(caption, IMAGES)])
    grids._families.cache_clear()
    grids._offer_fonts.cache_clear()
    assert capsys.readouterr().out.count("pip install fonts-of-nobody") == 1


def test_what_cannot_be_drawn_is_said_in_one_line(tmp_path, capsys):
    save_grid(tmp_path / "none" / "grid.png", [("a", IMAGES)])
    save_grid(tmp_path / "grid.png", [("a", IMAGES)] * 3 + [("b", IMAGES[..., :2])])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("grid.png: no picture: " in line for line in lines)


def test_short_captions_stay_in_one_line():
    assert grids._in_lines("a red circle and a blue square") == "a red circle and a blue square"
    lines = grids._in_lines("a red circle " * 60).split("\n")
    assert len(lines) == grids.LINES and lines[-1].endswith("\u2026")
