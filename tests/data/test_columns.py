"""Column names and layouts that people have, and what is refused before anything starts."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from simplear_rl.data.columns import Columns
from simplear_rl.data.images import to_square
from simplear_rl.data.listing import find_files
from simplear_rl.data.readers import texts_beside
from simplear_rl.data.sources import divide, most_samples, read_batches
from simplear_rl.data.trial import try_first
from simplear_rl.errors import UserError
from tests.pictures import encoded, picture

IMAGES = [encoded(picture(number, 40 + number, 50), "JPEG") for number in range(4)]


def read(folder, rows=3, min_size=None, pattern="**/*", **names):
    """Captions and short captions by id, and reasons by key, after the trial."""
    columns = Columns(**names)
    parts = divide(find_files(folder, pattern, columns=columns), rows)
    try_first(parts, 32, columns, min_size)
    found = [row for part in parts for row in read_batches(part, 32, 2, columns, min_size)]
    samples = [sample for row in found for sample in json.loads(row["samples"])]
    pixels = [image for row in found for image in row["images"]]
    assert len(pixels) == len(samples)
    good = {sample["id"]: (sample["caption"], sample["short_caption"]) for sample in samples}
    bad = {entry["key"]: entry["reason"] for row in found for entry in json.loads(row["rejected"])}
    return good, bad, pixels


def lines(folder, *entries, name="x.jsonl"):
    for number, image in enumerate(IMAGES):
        (folder / f"{number}.jpg").write_bytes(image)
    (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.mark.parametrize("image", ["image", "jpg", "img", "image_path", "file_name", "path", "Image_Path"])
@pytest.mark.parametrize("caption", ["caption", "text", "prompt", "txt", "TEXT"])
def test_common_names_are_known(image, caption, tmp_path):
    lines(tmp_path, {"url": "http://example.org/0.jpg", image: "0.jpg", caption: "a cat", "width": 40})
    good, bad, pixels = read(tmp_path)
    assert good == {"x.jsonl:1": ("a cat", None)} and not bad
    assert np.array_equal(pixels[0], to_square(IMAGES[0], 32))


def test_other_names_are_set(tmp_path):
    entry = {"foto": "0.jpg", "image": "1.jpg", "titel": "a cat", "caption": "not this", "kurz": "cat"}
    lines(tmp_path, entry)
    good, _, pixels = read(tmp_path, image="foto", caption="titel", short_caption="kurz")
    assert good == {"x.jsonl:1": ("a cat", "cat")}
    assert np.array_equal(pixels[0], to_square(IMAGES[0], 32))
    parquet.write_table(pa.table({"foto": [IMAGES[0]], "titel": ["a cat"], "kurz": ["cat"]}), tmp_path / "y.parquet")
    names = {"image": "foto", "caption": "titel", "short_caption": "kurz"}
    assert read(tmp_path, pattern="*.parquet", **names)[0] == {"y.parquet:0": ("a cat", "cat")}


@pytest.mark.parametrize(
    ("entry", "names", "message"),
    [
        ({"jpg": "0.jpg", "img": "1.jpg", "caption": "x"}, {}, "jpg and img may each be the image.*image_column=jpg"),
        ({"image": "0.jpg", "text": "x", "prompt": "y"}, {}, "text and prompt may each be .*caption_column=text"),
        ({"image": "0.jpg", "text": "x"}, {"caption": "alt"}, r"no alt \(caption_column\), found image, text"),
        ({"image": "0.jpg", "text": "x"}, {"image": "foto"}, r"no foto \(image_column\), found image, text"),
        ({"url": "http://x/0.jpg", "text": "x"}, {}, r"no column for the image \(set image_column\), found url, text"),
        ({"image": "0.jpg", "alt": "x"}, {}, r"no column for the caption \(set caption_column\), found image, alt"),
        ({"image": "0.jpg", "captions": ["x", "y"]}, {}, "a list of captions: set caption_choice=first or"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_columns_are_refused_before_the_start_with_the_key_to_set(kind, entry, names, message, tmp_path):
    lines(tmp_path, entry)
    if kind == "json":
        (tmp_path / "x.jsonl").rename(tmp_path / "x.json")
        (tmp_path / "x.json").write_text(json.dumps([entry]))
    if kind == "parquet":
        (tmp_path / "x.jsonl").unlink()
        parquet.write_table(pa.Table.from_pylist([entry]), tmp_path / "x.parquet")
    with pytest.raises(
        UserError, match=f"the first samples do not have the expected columns:\n  x.{kind}: 1 like: .*{message}"
    ):
        read(tmp_path, **names)


def test_a_row_may_lack_the_chosen_short_caption_but_not_a_table(tmp_path):
    lines(tmp_path, {"image": "0.jpg", "text": "x"}, {"image": "1.jpg", "text": "y", "title": "z"})
    expected = {"x.jsonl:1": ("x", None), "x.jsonl:2": ("y", "z")}
    assert read(tmp_path, short_caption="title")[:2] == (expected, {})
    parts = divide(find_files(tmp_path, "**/*"), 100)
    said = "image from image, caption from text, no title (short_caption_column)"
    assert try_first(parts, 32, Columns(short_caption="title"), None) == [f"  x.jsonl: {said}"]
    (tmp_path / "x.jsonl").unlink()
    (tmp_path / "0.txt").write_text("x")
    (tmp_path / "1.json").write_text('{"text": "y", "title": "z"}')
    good, _, _ = read(tmp_path, short_caption="title")
    assert good == {".:0.jpg": ("x", None), ".:1.jpg": ("y", "z")}
    parquet.write_table(pa.table({"image": IMAGES, "text": ["x"] * 4}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"no title \(short_caption_column\), found image, text"):
        read(tmp_path, pattern="*.parquet", short_caption="title")


def test_names_that_come_twice_are_refused(tmp_path):
    lines(tmp_path, {"image": "0.jpg", "caption": "x"})
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write('{"image": "0.jpg", "image": "1.jpg", "caption": "x"}\n')
    assert read(tmp_path)[1] == {"2": "two keys are called image"}
    (tmp_path / "x.jsonl").unlink()
    (tmp_path / "0.json").write_text('{"text": "x", "text": "y"}')
    (tmp_path / "1.txt").write_text("x")
    assert read(tmp_path)[1]["0.jpg"] == "json: two keys are called text"
    names = ["image", "caption", "width", "width"]
    table = pa.table([IMAGES, ["x"] * 4, [1] * 4, [2] * 4], names=names)
    parquet.write_table(table, tmp_path / "x.parquet")
    assert len(read(tmp_path, pattern="*.parquet")[0]) == 4  # what is not read may come twice
    for twice in "image", "caption", "img":
        names = ["img" if twice == "img" else "image", "caption", twice]
        table = pa.table([IMAGES, ["x"] * 4, IMAGES], names=names)
        parquet.write_table(table, tmp_path / "x.parquet")
        with pytest.raises(UserError, match=rf"x.parquet: 4 like: two columns are called {twice}: rename one"):
            read(tmp_path, pattern="*.parquet")


def test_all_faults_are_listed_together(tmp_path):
    lines(tmp_path, {"image": "0.jpg", "text": "x", "prompt": "y"}, name="a.jsonl")
    lines(tmp_path, {"image": "0.jpg", "alt": "x"}, name="b.jsonl")
    lines(tmp_path, {"image": "0.jpg", "alt": "x"}, name="c.jsonl")
    lines(tmp_path, {"image": "gone.jpg", "text": "x"}, name="d.jsonl")
    lines(tmp_path, {"image": "0.jpg", "text": "x"}, name="e.jsonl")
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert str(error.value).splitlines()[1:] == [
        "  a.jsonl: 1 like: text and prompt may each be the caption: choose one, for example caption_column=text",
        "  b.jsonl and 1 more: 1 like: no column for the caption (set caption_column), found image, alt",
        "  d.jsonl: 1 like: gone.jpg: No such file or directory",
    ]


def test_bad_samples_alone_do_not_end_a_run_unless_there_is_no_other(tmp_path):
    bad = {"image": "gone.jpg", "caption": "x"}
    lines(tmp_path, *[bad] * 20, {"image": "0.jpg", "caption": "x"}, name="a.jsonl")
    lines(tmp_path, bad, {}, name="b.jsonl")
    parts = divide(find_files(tmp_path, "**/*"), 100)
    assert try_first(parts, 32, Columns(), None) == [
        "  a.jsonl: image from image, caption from caption",
        "  the first samples are bad: b.jsonl: 1 like: gone.jpg: No such file or directory; "
        "1 like: no column for the image (set image_column), found none",
    ]
    with pytest.raises(UserError, match="none of the first samples is good:\n  b.jsonl: 1 like: gone.jpg"):
        try_first(parts[1:], 32, Columns(), None)
    with pytest.raises(UserError, match="there are no samples"):
        try_first([], 32, Columns(), None)


def test_addresses_are_no_images(tmp_path):
    lines(tmp_path, {"image": "https://example.org/0.jpg", "caption": "x"})
    with pytest.raises(UserError, match="an address, expected a file: download the images first"):
        read(tmp_path)


def test_one_of_a_list_of_captions_by_choice(tmp_path):
    lists = [[f"{number}{letter}" for letter in "abcde"] for number in range(40)]
    lines(
        tmp_path, *({"image": "0.jpg", "captions": captions} for captions in lists), {"image": "0.jpg", "captions": []}
    )
    good, bad, _ = read(tmp_path, choice="first")
    assert [caption for caption, _ in good.values()] == [captions[0] for captions in lists]
    assert bad == {"41": "no caption"}
    drawn = [read(tmp_path, rows=rows, choice="random", seed=seed)[0] for rows, seed in ((3, 0), (7, 0), (3, 1))]
    assert drawn[0] == drawn[1] != drawn[2]  # whatever the parts, by the seed alone
    assert len({caption[-1] for caption, _ in drawn[0].values()}) == 5
    (tmp_path / "x.jsonl").unlink()
    table = pa.table({"image": [IMAGES[0]] * 2, "captions": [["a", "b"], ["c"]]})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert read(tmp_path, choice="first")[0] == {"x.parquet:0": ("a", None), "x.parquet:1": ("c", None)}


# Layouts


def triple(number):
    about = {"url": f"http://example.org/{number}.jpg", "caption": f"picture {number}", "key": str(number)}
    return {"jpg": IMAGES[number], "txt": f"picture {number}".encode(), "json": json.dumps(about).encode()}


def img2dataset(folder, layout):
    """Two shards of two images, as img2dataset's three layouts have them."""
    for shard in range(2):
        numbers = range(2 * shard, 2 * shard + 2)
        table = {"url": [f"http://example.org/{n}.jpg" for n in numbers], "caption": [f"picture {n}" for n in numbers]}
        table |= {"key": [str(n) for n in numbers], "status": ["success"] * 2}
        if layout == "parquet":
            table["jpg"] = [IMAGES[n] for n in numbers]
        if layout == "webdataset":
            with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
                for number in numbers:
                    for kind, data in triple(number).items():
                        info = tarfile.TarInfo(f"{number}.{kind}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        if layout == "files":
            (folder / f"{shard:05d}").mkdir()
            for number in numbers:
                for kind, data in triple(number).items():
                    (folder / f"{shard:05d}" / f"{number}.{kind}").write_bytes(data)
        parquet.write_table(pa.table(table), folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text('{"count": 2, "successes": 2}')


@pytest.mark.parametrize("layout", ["webdataset", "parquet", "files"])
def test_the_layouts_of_img2dataset(layout, tmp_path):
    img2dataset(tmp_path, layout)
    good, bad, pixels = read(tmp_path)
    assert [caption for caption, _ in good.values()] == [f"picture {n}" for n in range(4)] and not bad
    assert all(np.array_equal(pixels[n], to_square(IMAGES[n], 32)) for n in range(4))
    assert (
        list(good)[2]
        == {
            "webdataset": "00001.tar:2",
            "parquet": "00001.parquet:0",
            "files": "00001:2.jpg",
        }[layout]
    )
    if layout != "parquet":
        assert list(read(tmp_path, caption="key")[0].values()) == [(str(n), None) for n in range(4)]


def test_images_with_texts_beside_them_are_listed_where_a_text_is_missing(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(IMAGES[number])
    (tmp_path / "0.txt").write_text("zero")
    (tmp_path / "1.json").write_text('{"text": "one", "short_caption": "1"}')
    (tmp_path / "2.json").write_text("{")
    good, bad, _ = read(tmp_path)
    assert good == {".:0.jpg": ("zero", None), ".:1.jpg": ("one", "1")}
    assert bad["3.jpg"] == "no caption" and bad["2.jpg"].startswith("json: not JSON")
    (tmp_path / "3.alt").write_text("three")
    assert read(tmp_path, caption="alt")[0] == {".:3.jpg": ("three", None)}
    for name, capitals in {"0.txt": "0.TXT", "1.json": "1.Json", "3.alt": "3.ALT"}.items():
        (tmp_path / name).rename(tmp_path / capitals)
    assert read(tmp_path)[0] == good and read(tmp_path, caption="alt")[0] == {".:3.jpg": ("three", None)}
    assert list(texts_beside(tmp_path / "3.jpg", Columns(caption="x" * 300, short_caption="alt"))) == ["alt"]


def test_parquet_with_paths(tmp_path):
    lines(tmp_path)
    (tmp_path / "x.jsonl").unlink()
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    values = [
        {"bytes": None, "path": "0.jpg"},
        {"bytes": IMAGES[1], "path": "gone.jpg"},
        {"bytes": b"", "path": "0.jpg"},
    ]
    values += [{"bytes": None, "path": None}, None, {"bytes": None, "path": "gone.jpg"}]
    table = pa.table({"image": pa.array(values, struct), "text": ["x"] * len(values)})
    parquet.write_table(table, tmp_path / "x.parquet")
    good, bad, pixels = read(tmp_path, rows=10)
    assert list(good) == ["x.parquet:0", "x.parquet:1"]
    assert np.array_equal(pixels[0], to_square(IMAGES[0], 32)) and np.array_equal(pixels[1], to_square(IMAGES[1], 32))
    assert bad == dict.fromkeys("234", "no image bytes") | {"5": "gone.jpg: No such file or directory"}
    parquet.write_table(pa.table({"image_path": ["2.jpg"], "caption": ["x"]}), tmp_path / "x.parquet")
    assert np.array_equal(read(tmp_path)[2][0], to_square(IMAGES[2], 32))


def test_tars_by_other_names(tmp_path):
    with tarfile.open(tmp_path / "X.TAR", "w") as tar:
        for kind, data in {"img.jpg": IMAGES[0], "json": b'{"text": "t", "alt": "a"}', "blip.txt": b"b"}.items():
            info = tarfile.TarInfo(f"0.{kind}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    message = r"expected one image \(jpg, jpeg, png, webp\), found 0 among blip.txt, img.jpg, json; in a tar a key ends"
    with pytest.raises(UserError, match=message):
        read(tmp_path)
    for name, caption in {None: "t", "alt": "a", "blip.txt": "b"}.items():
        assert read(tmp_path, image="img.jpg", caption=name)[0] == {"X.TAR:0": (caption, None)}


def test_damaged_parquet_files_are_listed_beside_others(tmp_path):
    table = pa.table({"image": IMAGES[:1], "caption": ["x"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    parts = divide(find_files(tmp_path, "**/*"), 10)
    assert parts[1].problem.startswith("the file cannot be read: not a readable Parquet file")
    assert try_first(parts, 32, Columns(), None)[1].startswith(
        "  the first samples are bad: b.parquet: the file cannot"
    )


def test_small_images_are_enlarged_by_choice(tmp_path):
    small = encoded(picture(0, 20, 30), "PNG")
    (tmp_path / "small.png").write_bytes(small)
    lines(tmp_path, {"image": "small.png", "caption": "x"}, {"image": "0.jpg", "caption": "x"})
    assert list(read(tmp_path)[1].values()) == ["20 x 30 pixels: the shorter side is below 32"]
    lines(
        tmp_path,
        {"image": "small.png", "caption": "x"},
        {"image": "0.jpg", "caption": "x"},
        {"image": "3.jpg", "caption": "x"},
    )
    assert list(read(tmp_path, min_size=41)[1].values()) == [
        "20 x 30 pixels: the shorter side is below 41",
        "40 x 50 pixels: the shorter side is below 41",
    ]
    good, bad, pixels = read(tmp_path, min_size=20)
    assert len(good) == 3 and not bad and pixels[0].shape == (32, 32, 3)
    assert list(read(tmp_path, min_size=21)[1].values()) == ["20 x 30 pixels: the shorter side is below 21"]
    assert np.array_equal(to_square(IMAGES[0], 32, 1), to_square(IMAGES[0], 32))


def test_samples_of_tars_are_counted_from_their_headers(tmp_path):
    img2dataset(tmp_path, "webdataset")
    parts = divide(find_files(tmp_path, "**/*"), 10)
    assert sum(len(list(read_batches(part, 32, 1))) - 1 for part in parts) == 4
    assert most_samples(parts) == 4 + len(parts)  # never fewer
    (tmp_path / "00000.tar").write_bytes((tmp_path / "00000.tar").read_bytes()[:2000])
    assert most_samples(parts) >= 3
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name in "a.jpg", "a":
            tar.addfile(tarfile.TarInfo(name))
    assert most_samples(parts[:1]) == 3
