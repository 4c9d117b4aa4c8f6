"""Image files without the metadata that Pillow stumbles over; pixels stay as they are."""

import struct
from collections.abc import Iterator

PNG_START = b"\x89PNG\r\n\x1a\n"
# What the PNG specification lists beside the pixels, their palette, transparency and animation.
PNG_METADATA = b"tEXt zTXt iTXt tIME iCCP gAMA cHRM sRGB cICP mDCV cLLI sBIT bKGD hIST pHYs sPLT".split()
EXIF_MARKER = 0xE1
# APP0 and APP14 say how colours are coded; all other APP segments and comments say nothing about the pixels.
JPEG_METADATA = (*range(0xE1, 0xEE), 0xEF, 0xFE)


def without_metadata(data: bytes) -> Iterator[bytes]:
    """The PNG or JPEG file without its metadata: first with its EXIF, which may say how to turn it, then without.

    Versions that differ from `data` alone are given; of another or a broken file there are none.
    """
    parts = list(_png_chunks(data) if data.startswith(PNG_START) else _jpeg_segments(data))
    for dropped in ("metadata",), ("metadata", "exif"):
        kept = b"".join(part for kind, part in parts if kind not in dropped)
        if parts and kept != data:
            yield kept


def _png_chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    yield "pixels", PNG_START
    place = len(PNG_START)
    while place < len(data):
        name = data[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(data[place : place + 4])
        yield "metadata" if name in PNG_METADATA else "exif" if name == b"eXIf" else "pixels", data[place:end]
        place = end


def _jpeg_segments(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The segments up to the first scan, which holds pixels, and all that follows."""
    place = 2
    if not data.startswith(b"\xff\xd8"):
        return
    yield "pixels", data[:place]
    while len(data) >= place + 4 and data[place] == 0xFF and data[place + 1] != 0xDA:
        marker, length = struct.unpack_from(">BH", data, place + 1)
        end = place + 2 + length
        exif = marker == EXIF_MARKER and data[place + 4 : end].startswith(b"Exif\0")
        yield "exif" if exif else "metadata" if marker in JPEG_METADATA else "pixels", data[place:end]
        place = end
    yield "pixels", data[place:]
