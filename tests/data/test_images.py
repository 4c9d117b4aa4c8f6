import io
import json
import re
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import webdataset
from PIL import Image
from pyarrow import parquet

from simplear_rl.data.images import BadSampleError, BatchTokenizer, to_caption, to_square
from simplear_rl.data.listing import find_files
from simplear_rl.data.sources import divide, read_batches
from simplear_rl.errors import UserError
from simplear_rl.tokenizers.cosmos import CosmosTokenizer
from simplear_rl.tokenizers.fsq import FsqTokenizer, export
from tests import pictures
from tests.pictures import encoded, picture


def read(source, size=32, batch_size=4, rows=7, pattern="**/*"):
    """All rows of a source."""
    parts = divide(find_files(source, pattern), rows)
    return [row for part in parts for row in read_batches(part, size, batch_size)]


def samples(rows):
    return [sample for row in rows for sample in json.loads(row["samples"])]


def rejected(rows):
    return [entry for row in rows for entry in json.loads(row["rejected"])]


def reasons(rows):
    return {entry["key"]: entry["reason"] for entry in rejected(rows)}


# Images


def test_shorter_side_is_resized_and_the_centre_cut_out():
    image = picture(0, 200, 100)
    square = to_square(encoded(image, "PNG"), 50)
    reference = np.asarray(image.resize((100, 50), Image.Resampling.BICUBIC).crop((25, 0, 75, 50)))
    assert square.shape == (50, 50, 3) and square.dtype == np.uint8
    assert np.abs(square[:, 2:-2].astype(int) - reference[:, 2:-2]).max() <= 1  # the cut shows at its edges only
    tall = to_square(encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG"), 50)
    assert np.array_equal(tall, np.rot90(square))


def test_downsizing_has_antialiasing():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(to_square(encoded(Image.fromarray(stripes), "PNG"), 40).astype(int) - 127).max() <= 5


@pytest.mark.parametrize(("orientation", "turned"), [(3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(orientation, turned):
    image, exif = picture(1, 96, 64), Image.Exif()
    exif[0x0112] = orientation
    upright = to_square(encoded(image, "PNG"), 32)
    square = to_square(encoded(image, "PNG", exif=exif), 32)
    assert np.abs(square.astype(int) - np.rot90(upright, turned)).max() <= 1  # rows and columns change their turns


def test_transparent_becomes_white_and_other_modes_become_rgb():
    def corner(image, form="PNG", **options):
        return to_square(encoded(image, form, **options), 32)[0, 0].tolist()

    half = Image.new("RGBA", (32, 32), (255, 0, 0, 128))
    assert corner(half) == corner(half, "WEBP", lossless=True) == [255, 127, 127]
    assert corner(Image.new("LA", (32, 32), (0, 0))) == [255, 255, 255]
    assert corner(Image.new("P", (32, 32), 0), transparency=0) == [255, 255, 255]
    assert corner(Image.new("RGB", (32, 32), (1, 2, 3)), transparency=(1, 2, 3)) == [255, 255, 255]
    assert corner(Image.new("L", (32, 32), 7)) == [7, 7, 7]
    assert corner(Image.new("1", (32, 32), 1)) == [255, 255, 255]
    assert corner(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG") == pytest.approx([255, 0, 0], abs=3)
    assert corner(Image.fromarray(np.full((32, 32), 0x1234, np.uint16))) == [0x12] * 3


def test_a_jpeg_with_previews_is_its_first_image():
    image = picture(2, 64, 64)
    data = encoded(image, "MPO", save_all=True, append_images=[picture(3, 32, 32)])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.array_equal(to_square(data, 32), to_square(encoded(image, "JPEG"), 32))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_truncated_files_are_refused_wherever_they_end(form):
    data = encoded(picture(4, 80, 60), form)
    end = len(data) - (12 if form == "PNG" else 0)  # the last 12 bytes of a PNG carry nothing
    for length in [*range(0, end - 2, 97), end - 3]:
        with pytest.raises(BadSampleError):
            to_square(data[:length], 32)


def test_every_flipped_bit_of_a_png_is_found():
    data = encoded(picture(5, 32, 32), "PNG")
    for place in range(0, len(data), 31):
        with pytest.raises(BadSampleError):
            to_square(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :], 32)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_no_damage_raises_anything_else(form):
    data, generator = encoded(picture(6, 64, 64), form), np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        broken = bytearray(data)
        for place in generator.integers(0, len(data) if generator.random() < 0.5 else 64, 4):
            broken[place] = generator.integers(256)
        try:
            outcomes.add(to_square(bytes(broken), 32).shape)
        except BadSampleError:
            outcomes.add("refused")
    assert outcomes == {(32, 32, 3), "refused"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a JPEG, PNG or WebP image"),
        (b"<html>404</html>", "not a JPEG, PNG or WebP image"),
        (encoded(picture(0, 64, 64), "GIF"), "not a JPEG, PNG or WebP image"),
        (encoded(picture(0, 64, 31), "PNG"), "64 x 31 pixels: the shorter side is below 32"),
        (pictures.bomb(), "exceeds limit"),
        (encoded(Image.new("1", (10_000, 9_000)), "PNG"), "exceeds limit"),
        (pictures.damaged(0, "animated")[0], "animated"),
        (re.sub(rb"(?s)....PLTE.*(?=....IDAT)", b"", encoded(picture(0, 64, 64, "P"), "PNG")), "unreadable image: .+"),
    ],
)
def test_unusable_images_are_refused_with_the_reason(data, message):
    with pytest.raises(BadSampleError, match=message):
        to_square(data, 32)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no caption"),
        (" \n", "empty caption"),
        (3, "expected text, found int"),
        (["a"], "expected text, found list"),
        ("\ud800", "not valid Unicode"),
        (b"\xff", "not valid Unicode"),
    ],
)
def test_unusable_captions_are_refused(value, message):
    with pytest.raises(BadSampleError, match=message):
        to_caption(value, "caption")
    assert to_caption(" a cat, \u732b\n".encode(), "caption") == "a cat, \u732b"


# Sources


@pytest.mark.parametrize("kind", ["jsonl", "tar", "parquet"])
def test_every_good_sample_once_and_every_bad_one_listed(kind, tmp_path):
    good, bad = pictures.write(kind, tmp_path / "in", 100, bad_every=5)
    rows = read(tmp_path / "in")
    assert len(bad) == 20
    assert [(s["id"], s["caption"]) for s in samples(rows)] == list(good.items())
    listed = [(entry["file"], entry["key"]) for entry in rejected(rows)]
    assert len(listed) == len(bad) and set(listed) == bad
    assert sum(len(row["images"]) for row in rows) == len(good)
    for row in rows:
        assert len(row["images"]) == len(json.loads(row["samples"])) <= 4


@pytest.mark.parametrize("kind", ["jsonl", "tar", "parquet"])
def test_batches_number_the_rows_of_a_part(kind, tmp_path):
    pictures.write(kind, tmp_path / "in", 30, bad_every=10)
    parts = divide(find_files(tmp_path / "in", "**/*"), 10)
    expected = ["00000-00000", "00001-00000"]
    if kind != "tar":
        expected = [f"0000{file}-0000{part}" for file in (0, 1) for part in (0, 1)]
        assert [part.rows for part in parts] == [10, 5, 10, 5]
    assert [part.shard for part in parts] == expected
    for part in parts:
        rows = list(read_batches(part, 32, 4))
        assert [row["number"] for row in rows] == list(range(len(rows)))
        assert [row["last"] for row in rows] == [False] * (len(rows) - 1) + [True]


def test_bad_lines_are_listed(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(0, 40, 40), "PNG"))
    lines = [
        b'{"image": "a.png", "caption": "fine", "short_caption": "f"}',
        b"{",
        b"",
        b"[1]",
        b'{"caption": "no path"}',
        b'{"image": "gone.png", "caption": "x"}',
        b'{"image": "a\\u0000", "caption": "x"}',
        b'{"image": "\\ud800", "caption": "x"}',
        b'{"image": ".", "caption": "x"}',
        b'{"image": "a.png", "caption": "x", "short_caption": ""}',
        b'{"image": "a.png", "caption": "\\ud800"}',
        b'{"image": "a.png", "caption": "\xff"}',
        b"[" * 100_000,
        b'{"image": "a.png", "caption": "the last has no line end"}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    rows = read(tmp_path)
    assert [(s["caption"], s["short_caption"]) for s in samples(rows)] == [
        ("fine", "f"),
        ("the last has no line end", None),
    ]
    listed = reasons(rows)
    assert list(listed) == [str(n) for n in range(2, 14)]
    assert listed["6"] == "gone.png: No such file or directory"
    assert listed["10"] == "empty short_caption"


def tar(file, members):
    with tarfile.open(file, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_tars_are_grouped_as_webdataset_groups_them(tmp_path):
    png, jpg = encoded(picture(0, 40, 40), "PNG"), encoded(picture(1, 40, 40), "JPEG")
    members = [
        ("d/a.png", png),
        ("d/a.txt", b"first\n"),
        ("d/b.JPG", jpg),
        ("d/b.json", b'{"caption": "second", "short_caption": "s"}'),
        ("README", b"no sample"),
        ("c.d.png", png),
        ("c.txt", b"the kind of the other is d.png"),
        ("img1", png),
        ("d/a", b"a third of its name"),
        ("._a", b"hidden"),
    ]
    tar(tmp_path / "x.tar", members)
    rows = read(tmp_path)
    theirs = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False))
    assert [s["__key__"] for s in theirs] == ["d/a", "d/b", "c"]
    assert [(s["id"], s["caption"], s["short_caption"]) for s in samples(rows)] == [
        ("x.tar:d/a", "first", None),
        ("x.tar:d/b", "second", "s"),
    ]
    assert reasons(rows) == {
        "c": "expected one image (jpg, jpeg, png, webp), found 0 among d.png, txt; in a tar a key ends at the first "
        "dot of the name"
    } | dict.fromkeys(("README", "img1", "d/a"), "no ending, expected one such as jpg or txt")


def test_bad_groups_of_a_tar_are_listed(tmp_path):
    png = encoded(picture(0, 40, 40), "PNG")
    members = [("a.png", png), ("a.txt", b"x"), ("b.png", png), ("b.jpg", png), ("b.txt", b"x"), ("c.png", png)]
    members += [("c.png", png), ("d.png", png), ("d.json", b"{"), ("e.png", png), ("e.json", b"[]"), ("a.webp", png)]
    tar(tmp_path / "x.tar", members)
    rows = read(tmp_path)
    assert [s["id"] for s in samples(rows)] == ["x.tar:a"]
    assert [entry["key"] for entry in rejected(rows)] == ["b", "c", "d", "e", "a"]


def test_damaged_tars_keep_what_can_be_read_and_say_what_is_lost(tmp_path):
    pictures.write("tar", tmp_path / "in", 20, bad_every=100)
    whole = (tmp_path / "in" / "part-0.tar").read_bytes()
    for file in (tmp_path / "in").iterdir():
        file.unlink()
    header = whole.index(b"000005.jpg")
    for name, data in {
        "cut.tar": whole[: header + 1000],
        "in_header.tar": whole[: header + 100],
        "broken_header.tar": whole[:header] + b"\xff" * 600 + whole[header + 600 :],
        "two.tar": whole + whole,
        "none.tar": b"",
        "text.tar": b"no archive" * 100,
    }.items():
        (tmp_path / "in" / name).write_bytes(data)
        rows = read(tmp_path / "in")
        lost = [entry for entry in rejected(rows) if "what follows is lost" in entry["reason"]]
        assert len(lost) == 1 and lost[0]["file"] == name
        assert len(samples(rows)) == {"two.tar": 10, "none.tar": 0, "text.tar": 0}.get(name, 5)
        (tmp_path / "in" / name).unlink()


def test_parquet_with_plain_bytes_and_any_parts(tmp_path):
    data = [encoded(picture(n, 40, 40), "JPEG") for n in range(25)]
    columns = {"image": data, "caption": [f"c{n}" for n in range(25)], "short_caption": [None, "s"] * 12 + [None]}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=10)
    for rows in 3, 10, 100:
        found = samples(read(tmp_path, rows=rows))
        assert [s["id"] for s in found] == [f"x.parquet:{n}" for n in range(25)]
        assert [s["short_caption"] for s in found] == columns["short_caption"]


def test_damaged_row_groups_are_listed_row_by_row(tmp_path):
    good, _ = pictures.write("parquet", tmp_path / "in", 500, bad_every=10_000)
    file = tmp_path / "in" / "part-0.parquet"
    column = parquet.read_metadata(file).row_group(1).column(0)
    data = bytearray(file.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 200] = b"\xff" * 200
    file.write_bytes(data)
    rows = read(tmp_path / "in", rows=70)
    assert [e["key"] for e in rejected(rows)] == [str(n) for n in range(100, 200)]
    assert [s["id"] for s in samples(rows)] == [
        i for i in good if i not in {f"part-0.parquet:{n}" for n in range(100, 200)}
    ]


def test_invalid_unicode_in_parquet_is_listed(tmp_path):
    captions = pa.Array.from_buffers(pa.string(), 2, pa.array([b"fine", b"\xff"]).buffers())
    data = [encoded(picture(n, 40, 40), "JPEG") for n in range(2)]
    parquet.write_table(pa.table({"image": data, "caption": captions}), tmp_path / "x.parquet")
    rows = read(tmp_path)
    assert [s["caption"] for s in samples(rows)] == ["fine"]
    assert "not valid Unicode" in reasons(rows)["1"]


def test_unusable_inputs_are_refused(tmp_path):
    def refused(message, pattern="**/*"):
        with pytest.raises(UserError, match=message) as error:
            read(tmp_path, pattern=pattern)
        assert str(tmp_path) in str(error.value)

    refused(r"no \*\.jsonl, \*\.json, \*\.tar, \*\.parquet and no images with texts among \*\*/\* \(files\)")
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"")
    refused("save_to_disk has them: write it with to_parquet: 1")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.tar").write_bytes(b"")
    refused("hidden files or folders: 1 .*hidden")
    image = [encoded(picture(0, 40, 40), "JPEG")]
    parquet.write_table(pa.table({"image": image, "text": ["x"]}), tmp_path / "x.parquet")
    tar(tmp_path / "y.tar", [])
    refused(r"several kinds of data with images \(x.parquet, y.tar\).*choose one, for example files='\*\*/\*\.parquet'")
    assert samples(read(tmp_path, pattern="*.tar")) == []


# Tokens


def test_a_batch_becomes_the_codes_of_the_tokenizer(tmp_path):
    torch.manual_seed(0)
    export(FsqTokenizer((5, 5, 4), channels=16), tmp_path)
    images = np.stack([to_square(encoded(picture(n, 50, 40), "PNG"), 32) for n in range(3)])
    row = {"shard": "00000-00000", "number": 0, "last": True, "images": images}
    tokenizer = BatchTokenizer(tmp_path, 32)
    codes = tokenizer(dict(row))
    assert codes["codes"].dtype == np.uint16 and codes["shard"] == "00000-00000" and "images" not in codes
    assert np.array_equal(codes["codes"], CosmosTokenizer(tmp_path).encode(images))
    assert tokenizer(row | {"images": images[:0]})["codes"].shape == (0, 16)


def test_captions_are_tidied_as_prompts_are():
    assert to_caption("\ufeffa cat\u00a0on a mat \n".encode(), "caption") == "a cat on a mat"
    with pytest.raises(BadSampleError, match="empty caption"):
        to_caption("\ufeff", "caption")


@pytest.mark.parametrize("kind", ["json lines", "parquet", "images"])
def test_a_failing_storage_is_no_fault_of_the_image(tmp_path, kind):
    for name in "a", "b":
        (tmp_path / f"{name}.png").write_bytes(encoded(picture(0, 40, 40), "PNG"))
        (tmp_path / f"{name}.txt").write_text("a cat")
    if kind == "json lines":
        lines = (json.dumps({"image": f"{name}.png", "caption": "x"}) + "\n" for name in ("a", "c", "b"))
        (tmp_path / "x.jsonl").write_text("".join(lines))
    elif kind == "parquet":
        table = pa.table({"image": ["a.png", "c.png", "b.png"], "caption": ["x", "x", "x"]})
        parquet.write_table(table, tmp_path / "x.parquet")
    source = {"json lines": tmp_path / "x.jsonl", "parquet": tmp_path / "x.parquet"}.get(kind, tmp_path)
    (part,) = divide(find_files(source, "**/*"), 10)
    (tmp_path / "b.png").unlink()
    found = list(read_batches(part, 32, 8))
    assert len(found[-1]["images"]) == 1 and not found[-1]["unreadable"]
    assert rejected(found)[-1]["reason"] == "b.png: No such file or directory"
    (tmp_path / "b.png").symlink_to("/proc/self/mem")  # may be opened, but not read
    (last,) = read_batches(part, 32, 8)
    assert last["unreadable"] == "the file cannot be read: Input/output error" and not len(last["images"])


def test_a_folder_that_is_not_on_this_machine_is_no_fault_of_its_images(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(0, 40, 40), "PNG"))
    (tmp_path / "a.txt").write_text("a cat")
    (part,) = divide(find_files(tmp_path, "**/*"), 10)
    (last,) = read_batches(replace(part, folder=tmp_path / "elsewhere"), 32, 8)
    assert last["unreadable"] == "the file cannot be read: No such file or directory" and not rejected([last])


@pytest.mark.parametrize("image", ["s3://bucket/a.png", "data:image/png;base64," + "A" * 9000])
def test_addresses_of_images_are_named_shortly(tmp_path, image):
    (tmp_path / "x.jsonl").write_text(json.dumps({"image": image, "caption": "x"}) + "\n\n \n")
    (entry,) = rejected(read(tmp_path))
    assert entry["reason"].endswith(": an address, expected a file: download the images first")
    assert len(entry["reason"]) < 300


def test_an_empty_line_within_json_lines_is_a_bad_sample(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(0, 40, 40), "PNG"))
    line = json.dumps({"image": "a.png", "caption": "x"}) + "\n"
    (tmp_path / "x.jsonl").write_text(f"{line}\n{line}\n\n")
    assert [entry["key"] for entry in rejected(read(tmp_path))] == ["2"]
    assert [sample["id"] for sample in samples(read(tmp_path))] == ["x.jsonl:1", "x.jsonl:3"]
