"""Odd metadata costs no pixels, and no orientation that can be read."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from simplear_rl.data.images import BadSampleError, to_square
from simplear_rl.data.metadata import PNG_START, without_metadata
from tests.pictures import encoded, picture

PICTURE = picture(1, 60, 40)
PNG, JPEG = encoded(PICTURE, "PNG"), encoded(PICTURE, "JPEG")
MARKED = {"PNG": PNG, "JPEG": JPEG, "WEBP": encoded(PICTURE, "WEBP", lossless=True)}
ORIENTATION = 0x0112


def chunk(name: bytes, content: bytes, checksum: int | None = None) -> bytes:
    data = name + content
    return (
        struct.pack(">I", len(content)) + data + struct.pack(">I", zlib.crc32(data) if checksum is None else checksum)
    )


def png_with(*chunks: bytes, late: bool = False) -> bytes:
    """With chunks behind the header or, if late, before the end."""
    place = len(PNG) - 12 if late else len(PNG_START) + 25
    return PNG[:place] + b"".join(chunks) + PNG[place:]


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg_with(*segments: bytes) -> bytes:
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Little-endian EXIF with entries of tag, type, count and four bytes of value or offset."""
    lines = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + lines + b"\0\0\0\0"


TURNED = (ORIENTATION, 3, 1, b"\x06\0\0\0")
LONG_TEXT = zlib.compress(b" " * 2**21)
ODD_PNG = {
    "large compressed text": png_with(chunk(b"zTXt", b"Comment\0\0" + LONG_TEXT)),
    "large compressed text behind the pixels": png_with(chunk(b"zTXt", b"Comment\0\0" + LONG_TEXT), late=True),
    "large international text": png_with(chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG_TEXT)),
    "unknown compression of text": png_with(chunk(b"zTXt", b"Comment\0\x07abc")),
    "much text": png_with(*[chunk(b"tEXt", b"k%d\0" % n + b"x" * 2**20) for n in range(65)]),
    "text with a wrong checksum": png_with(chunk(b"tEXt", b"Comment\0x", checksum=1)),
    "a large profile": png_with(chunk(b"iCCP", b"name\0\0" + zlib.compress(b" " * 2**27))),
    "a profile of unknown compression": png_with(chunk(b"iCCP", b"name\0\x05abc")),
    "short colours": png_with(chunk(b"cHRM", b"abc"), chunk(b"gAMA", b"")),
    "an empty rendering intent": png_with(chunk(b"sRGB", b"")),
    "short EXIF": png_with(chunk(b"eXIf", b"II")),
    "EXIF with a wrong checksum": png_with(chunk(b"eXIf", exif(TURNED), checksum=1)),
    "provenance with a wrong checksum": png_with(chunk(b"caBX", b"x" * 40, checksum=1)),
    "a private chunk behind the pixels with a wrong checksum": png_with(chunk(b"prVt", b"x", checksum=1), late=True),
    "bytes behind the end": PNG + b"x" * 300,
    "no end": PNG[:-12],
    "half an end": PNG[:-7],
    "no end, and odd metadata": png_with(chunk(b"zTXt", b"Comment\0\0" + LONG_TEXT))[:-12],
}


@pytest.mark.parametrize("oddity", ODD_PNG)
def test_odd_png_metadata_leaves_the_pixels(oddity):
    assert np.array_equal(to_square(ODD_PNG[oddity], 32), to_square(PNG, 32))


ODD_JPEG = {
    "a profile without its parts": jpeg_with(segment(0xE2, b"ICC_PROFILE\0\x01\x07" + b"x" * 50)),
    "a profile that is cut": jpeg_with(segment(0xE2, b"ICC_PROFILE\0")),
    "a broken index of previews": jpeg_with(segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff")),
    "previews that are not there": jpeg_with(segment(0xE2, b"MPF\0" + exif((0xB001, 4, 1, b"\x09\0\0\0")))),
    "broken Photoshop resources": jpeg_with(segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\xff\xff\xff\xff")),
    "short EXIF": jpeg_with(segment(0xE1, b"Exif\0\0II")),
    "EXIF of another kind": jpeg_with(segment(0xE1, b"Exif\0\0" + b"\xff" * 40)),
    "odd XMP": jpeg_with(segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0tiff:Orientation="\xff')),
    "an empty comment": jpeg_with(segment(0xFE, b"")),
    "provenance": jpeg_with(segment(0xEB, b"JP\0\x01" + b"\xff" * 40)),
    "a short JFIF segment": jpeg_with(segment(0xE0, b"JFIF\0")),
    "a short Adobe segment": jpeg_with(segment(0xEE, b"Adobe")),
    "bytes behind the end": JPEG + b"x" * 300,
    "a preview behind the end": JPEG + encoded(picture(2, 60, 40), "JPEG"),
    "no end": JPEG[:-2],
    "another resolution": encoded(PICTURE, "JPEG", dpi=(0, 72)),
}
COLOURS = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
ODD_OF_ANY = {
    "a profile of another space": {"icc_profile": COLOURS},
    "a profile that is none": {"icc_profile": b"\xff" * 600},
    "EXIF that is none": {"exif": b"Exif\0\0\xff\xff"},
}


@pytest.mark.parametrize("oddity", ODD_JPEG)
def test_odd_jpeg_metadata_leaves_the_pixels(oddity):
    assert np.array_equal(to_square(ODD_JPEG[oddity], 32), to_square(JPEG, 32))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("oddity", ODD_OF_ANY)
def test_profiles_and_exif_leave_the_pixels(form, oddity):
    lossless = {"lossless": True} if form == "WEBP" else {}
    data = encoded(PICTURE, form, **lossless, **ODD_OF_ANY[oddity])
    assert np.array_equal(to_square(data, 32), to_square(MARKED[form], 32))


NOT_A_NUMBER = struct.pack("<f", float("nan"))
BESIDE = {  # entries beside the orientation
    "a resolution that is no number": (0x011A, 11, 1, NOT_A_NUMBER),
    "a value beyond the end": (0x010F, 2, 1000, b"\xff\xff\xff\x7f"),
    "a value of an unknown type": (0x010F, 99, 1, b"abcd"),
    "a block of the camera beyond the end": (0x8769, 4, 1, b"\xff\xff\0\0"),
    "a count without end": (0x9286, 7, 2**32 - 1, b"\0\0\0\0"),
    "text that is no text": (0x010E, 2, 4, b"\xff\xfe\xfd\xfc"),
}


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("oddity", BESIDE)
def test_orientation_is_read_beside_odd_entries(form, oddity):
    entries = exif(*sorted([TURNED, BESIDE[oddity]]))
    image = Image.open(io.BytesIO(MARKED[form]))
    if form == "JPEG":
        data = jpeg_with(segment(0xE1, b"Exif\0\0" + entries))
    else:
        data = encoded(image, form, exif=b"Exif\0\0" + entries, **({"lossless": True} if form == "WEBP" else {}))
    upright = encoded(image.transpose(Image.Transpose.ROTATE_270), "PNG")
    assert np.array_equal(to_square(data, 32), to_square(upright, 32))


ODD_ORIENTATIONS = {
    "none": (ORIENTATION, 3, 0, b"\0\0\0\0"),
    "nine": (ORIENTATION, 3, 1, b"\x09\0\0\0"),
    "zero": (ORIENTATION, 3, 1, b"\0\0\0\0"),
    "text": (ORIENTATION, 2, 4, b"top\0"),
    "bytes": (ORIENTATION, 7, 4, b"\x06\0\0\0"),
    "no number": (ORIENTATION, 11, 1, NOT_A_NUMBER),
    "beyond the end": (ORIENTATION, 5, 1, b"\xff\xff\0\0"),
}


@pytest.mark.parametrize("oddity", ODD_ORIENTATIONS)
def test_an_orientation_that_means_nothing_turns_nothing(oddity):
    data = jpeg_with(segment(0xE1, b"Exif\0\0" + exif(ODD_ORIENTATIONS[oddity])))
    assert np.array_equal(to_square(data, 32), to_square(JPEG, 32))


def test_orientation_is_kept_where_other_metadata_is_dropped():
    data = png_with(chunk(b"zTXt", b"Comment\0\0" + LONG_TEXT), chunk(b"eXIf", exif(TURNED)))
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(io.BytesIO(data))
    upright = encoded(PICTURE.transpose(Image.Transpose.ROTATE_270), "PNG")
    assert np.array_equal(to_square(data, 32), to_square(upright, 32))


def test_random_exif_costs_no_pixels():
    generator = np.random.default_rng(0)
    whole = exif(TURNED, *BESIDE.values())
    turned = to_square(encoded(Image.open(io.BytesIO(JPEG)).transpose(Image.Transpose.ROTATE_270), "PNG"), 32)
    seen = set()
    for _ in range(300):
        broken = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            broken[place] = generator.integers(256)
        square = to_square(jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(broken))), 32)
        seen.add("turned" if np.array_equal(square, turned) else "as it is")
    assert seen == {"turned", "as it is"}


def test_damaged_pixels_are_refused_with_metadata_as_without():
    text = chunk(b"zTXt", b"Comment\0\0" + LONG_TEXT)
    broken = bytearray(png_with(text))
    broken[-40] ^= 4
    with pytest.raises(BadSampleError):
        to_square(bytes(broken), 32)
    for length in range(0, len(png_with(text)) - 16, 997):
        with pytest.raises(BadSampleError):
            to_square(png_with(text)[:length], 32)


def test_an_animation_stays_one_without_its_metadata():
    info = PngImagePlugin.PngInfo()
    animated = encoded(PICTURE, "PNG", save_all=True, append_images=[picture(2, 60, 40)], pnginfo=info)
    place = len(PNG_START) + 25
    animated = animated[:place] + chunk(b"zTXt", b"Comment\0\0" + LONG_TEXT) + animated[place:]
    with pytest.raises(BadSampleError):
        to_square(animated, 32)


def test_versions_without_metadata_keep_the_colours():
    cmyk = encoded(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG")
    with_profile = (
        cmyk[:2] + segment(0xE2, b"ICC_PROFILE\0\x01\x01abc") + segment(0xE1, b"Exif\0\0" + exif(TURNED)) + cmyk[2:]
    )
    versions = list(without_metadata(with_profile))
    assert [len(with_profile) - len(version) for version in versions] == [21, 57]
    assert versions[1] == cmyk
    assert list(without_metadata(cmyk)) == list(without_metadata(PNG)) == list(without_metadata(b"GIF89a")) == []
    adobe = encoded(Image.new("CMYK", (40, 40), (9, 99, 199, 50)), "JPEG")
    assert b"Adobe" in adobe and list(without_metadata(adobe)) == []  # what says how colours are coded stays
