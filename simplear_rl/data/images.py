"""Images and captions as they are found, turned into what the visual tokenizer reads, or refused with a reason."""

import io
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from simplear_rl.characters import tidy
from simplear_rl.data.metadata import without_metadata
from simplear_rl.device import default_device
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

FORMATS = ("JPEG", "PNG", "WEBP")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")
UPRIGHT = {  # by EXIF orientation, what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadSampleError(Exception):
    """A sample that cannot be used; the message says why."""


def to_square(data: bytes, size: int, min_size: int | None = None) -> np.ndarray:
    """A JPEG, PNG or WebP file -> uint8 [size, size, 3].

    The shorter side is resized to `size` (bicubic with antialiasing) and the centre is cut out.

    Raises:
        BadSampleError: see `decode`; a side is below `min_size` pixels, which is `size` if it is None.
    """
    image = decode(data, size if min_size is None else min_size)
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def decode(data: bytes, min_size: int = 1) -> Image.Image:
    """A JPEG, PNG or WebP file -> the upright image in RGB.

    The image is turned as its EXIF orientation says, if that can be read. Other metadata is ignored, however odd.
    Transparent parts become white; greyscale, palette and CMYK become RGB (without colour profiles); 16-bit greyscale
    keeps its upper 8 bits.

    Raises:
        BadSampleError: not such a file, truncated or damaged (as far as the format shows it: PNG has checksums, JPEG
            and WebP have none), animated, of another pixel format, larger than Pillow's limit against decompression
            bombs (89 million pixels), or with a side below `min_size` pixels.
    """
    try:
        return _decode_as_it_is(data, min_size)
    except BadSampleError:
        for plain in without_metadata(data):
            with suppress(BadSampleError):
                return _decode_as_it_is(plain, min_size)
        raise


def _decode_as_it_is(data: bytes, min_size: int) -> Image.Image:
    try:
        # From the limit on Pillow warns, and raises only from twice the limit on. Of odd metadata it warns as well.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.open(io.BytesIO(data), formats=FORMATS).verify()  # the checksums, after which it must be opened anew
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a JPEG with previews behind it
                raise BadSampleError("animated: expected a still image")
            if min(image.size) < min_size:
                raise BadSampleError(f"{image.width} x {image.height} pixels: the shorter side is below {min_size}")
            image.load()
            return _to_rgb(_upright(image))
    except (BadSampleError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise BadSampleError("not a JPEG, PNG or WebP image") from None
    except Exception as error:  # on damaged files the decoders raise whatever they run into
        raise BadSampleError(f"unreadable image: {str(error) or type(error).__name__}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises whatever it runs into in odd EXIF, which is no reason to lose the pixels
        turn = None
    return image if turn is None else image.transpose(turn)


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
    """A caption, tidied as prompts are. Raises BadSampleError if it is missing, empty or not valid Unicode."""
    if value is None:
        raise BadSampleError(f"no {name}")
    if not isinstance(value, str | bytes):
        raise BadSampleError(f"{name}: expected text, found {type(value).__name__}")
    try:
        text = tidy(value.decode() if isinstance(value, bytes) else value)
        text.encode()
    except UnicodeError as error:
        raise BadSampleError(f"{name}: not valid Unicode: {error}") from None
    if not text:
        raise BadSampleError(f"empty {name}")
    return text


class BatchTokenizer:
    """The visual tokenizer on rows of `sources.read_batches`; Ray Data makes an actor of it."""

    def __init__(self, source: Path, size: int):
        self.tokenizer = CosmosTokenizer(source, default_device())
        self.tokens = (size // self.tokenizer.patch) ** 2

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with `codes` uint16 [B, tokens] in the place of `images` [B, size, size, 3].

        Of pairs, [B, 2, tokens] in the place of [B, 2, size, size, 3].
        """
        images = row.pop("images")
        flat = images.reshape(-1, *images.shape[-3:])
        codes = self.tokenizer.encode(flat) if len(flat) else np.empty((0, self.tokens))
        return row | {"codes": codes.astype(np.uint16).reshape(*images.shape[:-3], self.tokens)}
