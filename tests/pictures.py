"""Image files of all kinds, some of them bad, in the three formats that are read."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import webdataset
from PIL import Image
from pyarrow import parquet

WAYS = [("JPEG", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("JPEG", "L"), ("PNG", "P"), ("JPEG", "CMYK"), ("PNG", "LA")]
DAMAGES = [
    "truncated",
    "no caption",
    "flipped bit",
    "blank caption",
    "no image",
    "small",
    "bomb",
    "text",
    "animated",
    "empty",
]


def picture(number: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture with some noise, another for every number."""
    y, x = np.mgrid[0:height, 0:width] / 16
    waves = np.stack([np.sin(x + number), np.cos(y * (1 + number % 5)), np.sin(x - y + number / 7)], axis=-1)
    noise = np.random.default_rng(number).normal(0, 8, waves.shape)
    image = Image.fromarray((127 + 100 * waves + noise).clip(0, 255).astype(np.uint8))
    if mode.endswith("A"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.convert(mode)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG file of a few bytes whose header promises 400 million pixels."""
    data = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def damaged(number: int, damage: str) -> tuple[bytes | None, str | None]:
    """Image and caption of a bad sample."""
    caption = f"damaged {number}"
    png = encoded(picture(number, 64, 48), "PNG")
    half = len(png) // 2
    form = WAYS[number % 3][0]
    data = encoded(picture(number, 64, 48), form)
    return {
        "truncated": (data[: len(data) * 2 // 3], caption),
        "no caption": (data, None),
        "flipped bit": (png[:half] + bytes([png[half] ^ 1]) + png[half + 1 :], caption),
        "blank caption": (data, " \n"),
        "no image": (None, caption),
        "small": (encoded(picture(number, 64, 31), form), caption),
        "bomb": (bomb(), caption),
        "text": (b"<html>404</html>", caption),
        "animated": (
            encoded(
                picture(number, 48, 48),
                "WEBP",
                save_all=True,
                append_images=[picture(number + 1, 48, 48)],
                lossless=True,
            ),
            caption,
        ),
        "empty": (b"", caption),
    }[damage]


def sample(number: int, bad_every: int) -> tuple[bytes | None, str | None, bool]:
    """Image, caption and whether they are good; every `bad_every`-th is not, in a way of its own."""
    if number % bad_every == bad_every - 1:
        return *damaged(number, DAMAGES[number // bad_every % len(DAMAGES)]), False
    form, mode = WAYS[number % len(WAYS)]
    width, height = np.random.default_rng(number).integers(32, 200, 2)
    return encoded(picture(number, width, height, mode), form), f"picture {number}", True


def write(kind: str, folder: Path, count: int, bad_every: int) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Write samples in two files; returns caption by id of the good ones, and file and key of the bad ones."""
    good: dict[str, str] = {}
    bad: set[tuple[str, str]] = set()
    folder.mkdir(parents=True)
    for half, numbers in enumerate((range(count // 2), range(count // 2, count))):
        name = f"part-{half}.{kind}"
        samples = [sample(number, bad_every) for number in numbers]
        keys = globals()[f"_write_{kind}"](folder / name, samples)
        for key, (_, caption, fine) in zip(keys, samples, strict=True):
            if fine:
                good[f"{name}:{key}"] = caption
            else:
                bad.add((name, key))
    return good, bad


def _write_jsonl(file: Path, samples: list) -> list[str]:
    folder = file.with_suffix("")
    folder.mkdir()
    with file.open("w") as lines:
        for row, (data, caption, _) in enumerate(samples):
            if data is not None:
                (folder / f"{row}.img").write_bytes(data)
            entry = {"image": f"{folder.name}/{row}.img"} | ({} if caption is None else {"caption": caption})
            lines.write(json.dumps(entry) + "\n")
    return [str(row + 1) for row in range(len(samples))]


def _write_tar(file: Path, samples: list) -> list[str]:
    with webdataset.TarWriter(str(file)) as tar:
        for row, (data, caption, _) in enumerate(samples):
            fields = {"__key__": f"{row:06d}", "cls": str(row)}
            tar.write(fields | ({} if data is None else {"jpg": data}) | ({} if caption is None else {"txt": caption}))
    return [f"{row:06d}" for row in range(len(samples))]


def _write_parquet(file: Path, samples: list) -> list[str]:
    """In the layout of Hugging Face data sets with an Image feature."""
    images = pa.array(
        [None if data is None else {"bytes": data, "path": f"{row}.jpg"} for row, (data, _, _) in enumerate(samples)],
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    )
    captions = pa.array([caption for _, caption, _ in samples], pa.string())
    parquet.write_table(pa.table({"image": images, "caption": captions}), file, row_group_size=100)
    return [str(row) for row in range(len(samples))]


# Columns of pickapic_v2, as its Parquet files have them.
PICKAPIC = pa.schema(
    [
        ("are_different", pa.bool_()),
        *((name, pa.string()) for name in ("best_image_uid", "caption", "created_at")),
        ("has_label", pa.bool_()),
        *((f"image_{i}_uid", pa.string()) for i in (0, 1)),
        *((f"jpg_{i}", pa.binary()) for i in (0, 1)),
        *((f"label_{i}", pa.float64()) for i in (0, 1)),
        ("ranking_id", pa.int64()),
    ]
)


def pickapic(file: Path, rows: list) -> None:
    """Rows of (caption, image 0, image 1, label 0, has_label)."""
    names = "caption", "jpg_0", "jpg_1", "label_0", "has_label"
    table = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    table["label_1"] = [None if label is None else 1 - label for label in table["label_0"]]
    empty = {field.name: [None] * len(rows) for field in PICKAPIC}
    file.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.table(empty | table, schema=PICKAPIC), file, row_group_size=2)
