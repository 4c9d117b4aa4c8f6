"""Images and captions as they are found, turned into what the visual tokenizer reads, or refused with a reason."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from simplear_rl.device import default_device
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

FORMATS = ("JPEG", "PNG", "WEBP")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")


class BadSampleError(Exception):
    """A sample that cannot be used; the message says why."""


def to_square(data: bytes, size: int) -> np.ndarray:
    """A JPEG, PNG or WebP file -> uint8 [size, size, 3].

    The image is turned as its EXIF orientation says. Transparent parts become white; greyscale, palette and CMYK become
    RGB (without colour profiles); 16-bit greyscale keeps its upper 8 bits. The shorter side is resized to `size`
    (bicubic with antialiasing) and the centre is cut out.

    Raises:
        BadSampleError: not such a file, truncated or damaged (as far as the format shows it: PNG has checksums, JPEG
            and WebP have none), animated, of another pixel format, larger than Pillow's limit against decompression
            bombs (89 million pixels), or smaller than `size`.
    """
    try:
        # From the limit on Pillow warns, and raises only from twice the limit on.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.open(io.BytesIO(data), formats=FORMATS).verify()  # the checksums, after which it must be opened anew
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a JPEG with previews after the image
            raise BadSampleError("animated: expected a still image")
        if min(image.size) < size:
            raise BadSampleError(f"{image.width} x {image.height} pixels: the shorter side is below {size}")
        return np.asarray(ImageOps.fit(_to_rgb(ImageOps.exif_transpose(image)), (size, size), Image.Resampling.BICUBIC))
    except (BadSampleError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise BadSampleError("not a JPEG, PNG or WebP image") from None
    except Exception as error:  # on damaged files the decoders raise whatever they run into
        raise BadSampleError(f"unreadable image: {error or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16" and not image.has_transparency_data:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # Pillow's own conversion clips at 255
    if image.mode not in MODES:
        raise BadSampleError(f"pixel format {image.mode}, expected one of {', '.join(MODES)}")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_caption(value: Any, name: str) -> str:
    """A caption without the space around it. Raises BadSampleError if it is missing, empty or not valid Unicode."""
    if value is None:
        raise BadSampleError(f"no {name}")
    try:
        text = (value.decode() if isinstance(value, bytes) else value).strip()
        text.encode()
    except UnicodeError as error:
        raise BadSampleError(f"{name}: not valid Unicode: {error}") from None
    except AttributeError:
        raise BadSampleError(f"{name}: expected text, found {type(value).__name__}") from None
    if not text:
        raise BadSampleError(f"empty {name}")
    return text


class BatchTokenizer:
    """The visual tokenizer on rows of `sources.read_batches`; Ray Data makes an actor of it."""

    def __init__(self, source: Path, size: int):
        self.tokenizer = CosmosTokenizer(source, default_device())
        self.tokens = (size // self.tokenizer.patch) ** 2

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with `codes` uint16 [B, tokens] in the place of `images` [B, size, size, 3]."""
        images = row.pop("images")
        codes = self.tokenizer.encode(images) if len(images) else np.empty((0, self.tokens))
        return row | {"codes": codes.astype(np.uint16)}
