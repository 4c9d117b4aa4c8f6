"""JSON arrays: cut between elements, and what is damaged in them is named."""

import json

import numpy as np
import pytest

from simplear_rl.data.columns import Columns
from simplear_rl.data.images import to_square
from simplear_rl.data.json_records import records
from simplear_rl.data.listing import find_files
from simplear_rl.data.sources import divide, read_batches
from simplear_rl.data.trial import try_first
from simplear_rl.errors import UserError
from tests.pictures import encoded, picture

IMAGES = [encoded(picture(number, 40 + number, 50), "JPEG") for number in range(4)]


@pytest.fixture(autouse=True)
def images(tmp_path):
    for number, image in enumerate(IMAGES):
        (tmp_path / f"{number}.jpg").write_bytes(image)


def read(folder, rows=3):
    """Captions and short captions by id, reasons by key, and pixels."""
    found = [row for part in divide(find_files(folder, "**/*"), rows) for row in read_batches(part, 32, 2)]
    samples = [sample for row in found for sample in json.loads(row["samples"])]
    good = {sample["id"]: (sample["caption"], sample["short_caption"]) for sample in samples}
    bad = {entry["key"]: entry["reason"] for row in found for entry in json.loads(row["rejected"])}
    return good, bad, [image for row in found for image in row["images"]]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("start", ["", "\ufeff", " \n"])
def test_json_arrays_are_read_in_parts(indent, start, tmp_path):
    entries = [{"image_path": f"{n % 4}.jpg", "caption": f'c [{n}], "é" \\ 猫'} for n in range(10)]
    (tmp_path / "meta.json").write_text(start + json.dumps(entries, indent=indent, ensure_ascii=False), "utf-8")
    for rows in 1, 3, 100:
        good, bad, pixels = read(tmp_path, rows=rows)
        assert good == {f"meta.json:{n + 1}": (entry["caption"], None) for n, entry in enumerate(entries)} and not bad
        assert np.array_equal(pixels[5], to_square(IMAGES[1], 32))


def test_json_arrays_of_any_length_are_cut_between_elements(tmp_path):
    generator = np.random.default_rng(0)
    entries = [{"caption": "x" * int(generator.integers(0, 9_000)), "n": [n, -1.5e9]} for n in range(300)]
    entries[7]["caption"] = "y" * 400_000
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    found = list(records(tmp_path / "meta.json"))
    assert [json.loads(record.lstrip(b"[, ")) for record in found] == entries
    offset = sum(len(record) for record in found[:200])
    assert list(records(tmp_path / "meta.json", offset)) == found[200:]


@pytest.mark.parametrize(
    ("end", "place", "reason"),
    [
        ("", 0, "expected `]`, found the end of the file"),
        (",", 1, "expected `]`, found the end of the file"),
        (', {"image": "1.jp', 12, "Unterminated string starting at"),
        (', {"caption": "a "big" cat"}, {"image": "1.jpg", "caption": "c"}]', 18, "Expecting ',' delimiter"),
        ("}", 0, "Expecting value"),
        ("] x", 2, "expected the end of the file, found more behind the array"),
        (']\n[{"image": "1.jpg", "caption": "c"}]', 2, "expected the end of the file, found more behind the array"),
        (", nonsense, 3]", 2, "Expecting value"),
        (f", {'9' * 9999}]", 2, "Exceeds the limit"),
        (f", {'[' * 100_000}]", 2, "maximum recursion depth exceeded"),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_damaged_json_arrays_cannot_be_read(rows, end, place, reason, tmp_path):
    whole = '[{"image": "0.jpg", "caption": "' + "é" * 40_000 + '"}'
    (tmp_path / "meta.json").write_text(whole + end, "utf-8")
    (part,) = parts = divide(find_files(tmp_path, "**/*"), rows)
    at = f"element {2 if end else 1}, byte {len(whole.encode()) + place}"
    assert part.problem.startswith(f"the file cannot be read: damaged JSON array, {at}: {reason}")
    with pytest.raises(UserError, match="none of the first samples is good:\n  meta.json: the file cannot be read: "):
        try_first(parts, 32, Columns(), None)


@pytest.mark.parametrize("end", ["]", ",]", " ,\n]\n"])
def test_a_comma_behind_the_last_element_costs_nothing(end, tmp_path):
    (tmp_path / "meta.json").write_text('[{"image": "0.jpg", "caption": "a"}' + end)
    assert read(tmp_path)[:2] == ({"meta.json:1": ("a", None)}, {})
    (tmp_path / "meta.json").write_text("[]\n")
    assert divide(find_files(tmp_path, "**/*"), 3) == []


def test_an_array_of_other_things_is_listed(tmp_path):
    (tmp_path / "meta.json").write_text(
        '[{"image": "0.jpg", "caption": "a"}, 3, [{}], null, {"image": 4, "caption": "b"}]'
    )
    good, bad, _ = read(tmp_path)
    assert list(good) == ["meta.json:1"]
    assert bad == dict.fromkeys("234", "expected an object with the path `image`") | {
        "5": "image: expected bytes or a path, found int"
    }
