"""Pictures of a report, each as the text of an <img> source."""

import base64
import io
import re
from pathlib import Path

from PIL import Image

GRID_WIDTH, SMALL = 900, 128  # pixels


def inline(image: Image.Image, width: int) -> str:
    """A picture of at most `width` pixels across, as WebP."""
    image = image.convert("RGB")
    if image.width > width:
        image = image.resize((width, max(1, image.height * width // image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85, method=1)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def inline_file(file: Path, width: int) -> str:
    """The same of a file. Raises OSError or another of READ_ERRORS."""
    with Image.open(file) as image:
        if image.mode == "RGBA":  # where it is transparent it is white
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)  # type: ignore[assignment]
        return inline(image, width)


def of_row(folder: Path, row: dict) -> str:
    """The image file of an evaluation's row; of several images in one file the whole of it."""
    return inline_file(folder / re.sub(r"#\d+$", "", row["filename"]), SMALL)
