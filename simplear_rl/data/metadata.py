"""Image files without the metadata that Pillow stumbles over; pixels stay as they are."""

import struct
from collections.abc import Iterator

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
# Chunks whose name begins with a small letter can be left out (PNG specification, 5.4); these concern the pixels.
PNG_PIXELS = b"tRNS acTL fcTL fdAT".split()
EXIF_MARKER = 0xE1
# APP segments and comments say nothing about the pixels, but for APP0 and APP14, which say how colours are coded where
# they have as many bytes as libjpeg asks for.
JPEG_METADATA = (*range(0xE0, 0xF0), 0xFE)
COLOUR_CODING = {0xE0: 14, 0xEE: 12}


def without_metadata(data: bytes) -> Iterator[bytes]:
    """The PNG or JPEG file without its metadata: first with its EXIF, which may say how to turn it, then without.

    A PNG file whose last chunk, which holds nothing, was cut off gets it back. Versions that differ from `data` alone
    are given; of another or a broken file there are none.
    """
    parts = list(_png_chunks(data) if data.startswith(PNG_START) else _jpeg_segments(data))
    for dropped in ("metadata",), ("metadata", "exif"):
        kept = b"".join(part for kind, part in parts if kind not in dropped)
        if parts and kept != data:
            yield kept


def _png_chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    yield "pixels", PNG_START
    place = len(PNG_START)
    while not PNG_END.startswith(data[place : place + len(PNG_END)]):
        name = data[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(data[place : place + 4])
        metadata = name[:1].islower() and name not in PNG_PIXELS
        yield "exif" if name == b"eXIf" else "metadata" if metadata else "pixels", data[place:end]
        place = end
    yield "pixels", PNG_END


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
        metadata = marker in JPEG_METADATA and length - 2 < COLOUR_CODING.get(marker, length)
        yield "exif" if exif else "metadata" if metadata else "pixels", data[place:end]
        place = end
    yield "pixels", data[place:]
