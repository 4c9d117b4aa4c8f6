"""What is found below a folder, what is passed over, and that nothing is without a word."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from simplear_rl.data import listing
from simplear_rl.data.columns import Columns
from simplear_rl.data.listing import find_files
from simplear_rl.data.sources import divide
from simplear_rl.errors import UserError
from tests.pictures import encoded, picture

JPEG = encoded(picture(0, 40, 40), "JPEG")


def fill(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")


def names(listing):
    return [str(path.relative_to(listing.folder)) for path in listing.files]


def passed_over(listing):
    return {reason: sorted(names) for reason, names in listing.passed_over.items()}


def test_what_is_passed_over_is_listed_by_kind(tmp_path):
    fill(
        tmp_path, "a.tar", "B.TAR", "c.tar.gz", "d.TGZ", "e.jsonl.zst", ".f.tar", ".g/h.tar", "i.csv", "README", "j.zip"
    )
    (tmp_path / "k.tar").symlink_to(tmp_path / "gone.tar")
    (tmp_path / "l.tar").symlink_to("l.tar")
    os.mkfifo(tmp_path / "m.tar")
    (tmp_path / "n.jpg").write_bytes(JPEG)
    (tmp_path / "stats.json").write_text('{"count": 3}')
    listing = find_files(tmp_path, "**/*")
    assert names(listing) == ["B.TAR", "a.tar"]
    assert passed_over(listing) == {
        "JSON files that hold no array": ["stats.json"],
        "compressed files (*.jsonl.zst), unpack them first": ["e.jsonl.zst"],
        "compressed files (*.tar.gz), unpack them first": ["c.tar.gz"],
        "compressed files (*.tgz), unpack them first": ["d.TGZ"],
        "compressed files (*.zip), unpack them first": ["j.zip"],
        "files of an unknown kind (*.csv)": ["i.csv"],
        "files without an ending": ["README"],
        "hidden files or folders": [".f.tar", ".g"],
        "images without texts of the same name; those that data files name are read": ["n.jpg"],
        "links that lead nowhere (No such file or directory)": ["k.tar"],
        "links that lead nowhere (Too many levels of symbolic links)": ["l.tar"],
        "special files": ["m.tar"],
    }
    shown = str(listing).splitlines()
    assert shown[0] == f"{tmp_path}: WebDataset tars: 2"
    assert "  passed over, hidden files or folders: 2 (.f.tar, .g)" in shown
    assert len(shown) == 1 + len(listing.passed_over)


def test_linked_folders_are_followed_once(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "disk"
    fill(inside, "x/0.tar", "x/y/1.tar")
    fill(outside, "2.tar", "deep/3.tar")
    (inside / "a_link_that_comes_first").symlink_to(inside / "x")
    (inside / "disk").symlink_to(outside)
    (outside / "loop").symlink_to(inside)
    (outside / "deep" / "again").symlink_to(outside)
    (inside / "one.tar").symlink_to(outside / "2.tar")
    listing = find_files(inside, "**/*")
    assert names(listing) == ["disk/2.tar", "disk/deep/3.tar", "one.tar", "x/0.tar", "x/y/1.tar"]
    assert passed_over(listing) == {
        "links to folders that are read already, or are `output`": [
            "a_link_that_comes_first",
            "disk/deep/again",
            "disk/loop",
        ]
    }


def test_the_output_is_no_input_through_a_link(tmp_path):
    fill(tmp_path, "in/0.tar", "disk/1.tar", "disk/tokens/00000-00000.parquet")
    (tmp_path / "in" / "disk").symlink_to(tmp_path / "disk")
    assert names(find_files(tmp_path / "in", "**/*", tmp_path / "disk" / "tokens")) == ["0.tar", "disk/1.tar"]


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may read everything")
def test_folders_and_files_without_rights_are_listed(tmp_path):
    fill(tmp_path, "a.tar", "closed/b.tar", "named/c.tar", "d.tar")
    (tmp_path / "closed").chmod(0o000)
    (tmp_path / "named").chmod(0o444)
    (tmp_path / "d.tar").chmod(0o000)
    code = f"""
from pathlib import Path
from simplear_rl.data.listing import find_files
from simplear_rl.data.sources import divide
listing = find_files(Path({str(tmp_path)!r}), "**/*")
print(listing)
print([(part.file, part.problem) for part in divide(listing, 10)])
"""
    rights = "-dac_override,-dac_read_search"
    drop = ["setpriv", "--bounding-set", rights, "--inh-caps", rights] if os.geteuid() == 0 else []
    shown = subprocess.run([*drop, sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stdout.splitlines() == [
        f"{tmp_path}: WebDataset tars: 2",
        "  passed over, files that cannot be reached (Permission denied): 1 (named/c.tar)",
        "  passed over, folders that cannot be read (Permission denied): 1 (closed)",
        "[('a.tar', ''), ('d.tar', 'the file cannot be read: Permission denied')]",
    ], shown.stderr


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("**/*", ["Top.TAR", "a/b/x.tar", "a/y.tar", "z.tar"]),
        ("*", ["Top.TAR", "z.tar"]),
        ("*.tar", ["Top.TAR", "z.tar"]),
        ("**/*.tar", ["Top.TAR", "a/b/x.tar", "a/y.tar", "z.tar"]),
        ("a/**/*.tar", ["a/b/x.tar", "a/y.tar"]),
        ("**/b/*", ["a/b/x.tar"]),
        ("a/[xy].tar", ["a/y.tar"]),
        ("a/**", ["a/b/x.tar", "a/y.tar"]),
    ],
)
def test_patterns_choose_as_globs_do(pattern, found, tmp_path):
    fill(tmp_path, "Top.TAR", "z.tar", "a/y.tar", "a/b/x.tar")
    listing = find_files(tmp_path, pattern)
    assert names(listing) == found
    assert sum(map(len, listing.passed_over.values())) == 4 - len(found)
    assert list(listing.passed_over) == ([] if len(found) == 4 else [f"files that do not match files={pattern}"])


def write_parquet(file, **columns):
    parquet.write_table(pa.table(columns), file)


def test_sidecars_give_way_to_the_kind_with_images(tmp_path):
    fill(tmp_path, "00000.tar")
    write_parquet(tmp_path / "00000.parquet", url=["u"], caption=["x"], width=[40])
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "labels.json").write_text('[{"label": 1}]')
    listing = find_files(tmp_path, "**/*")
    assert names(listing) == ["00000.tar"]
    assert passed_over(listing) == {
        "JSON arrays without images, beside data with images": ["labels.json"],
        "JSON lines without images, beside data with images": ["prompts.jsonl"],
        "Parquet files without images, beside data with images": ["00000.parquet"],
    }


def test_two_kinds_with_images_are_refused_with_the_key(tmp_path):
    fill(tmp_path, "a.tar")
    write_parquet(tmp_path / "b.parquet", jpg=[JPEG], caption=["x"])
    with pytest.raises(
        UserError, match=r"several kinds of data with images \(a.tar, b.parquet\): 1 Parquet files, 1 Web"
    ):
        find_files(tmp_path, "**/*")
    assert names(find_files(tmp_path, "**/*.parquet")) == ["b.parquet"]
    write_parquet(tmp_path / "b.parquet", picture=[JPEG], caption=["x"])
    assert names(find_files(tmp_path, "**/*")) == ["a.tar"]
    with pytest.raises(UserError, match="several kinds"):
        find_files(tmp_path, "**/*", columns=Columns(image="picture"))


def test_images_are_data_where_texts_lie_beside_them(tmp_path):
    for name in "0.jpg", "1.JPG", "s/2.png":
        fill(tmp_path, name)
    fill(tmp_path, "0.txt", "1.json", "s/2.caption", "other.txt")
    listing = find_files(tmp_path, "**/*")
    assert names(listing) == ["0.jpg", "1.JPG", "s/2.png"]
    assert passed_over(listing) == {"files of an unknown kind (*.txt)": ["other.txt"]}
    assert [(part.shard, part.file, part.images) for part in divide(listing, 1)] == [
        ("00000-00000", ".", ("0.jpg",)),
        ("00000-00001", ".", ("1.JPG",)),
        ("00001-00000", "s", ("2.png",)),
    ]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.jpg", "text": "x"}))
    with pytest.raises(UserError, match=r"several kinds of data with images \(0.jpg, metadata.jsonl\)"):
        find_files(tmp_path, "**/*")
    assert names(find_files(tmp_path, "**/*.jpg")) == ["0.jpg", "1.JPG"]
    assert names(find_files(tmp_path, "*.jsonl")) == ["metadata.jsonl"]


def test_a_single_file_is_read_or_refused_with_the_reason(tmp_path):
    fill(tmp_path, "A.TAR", "x.csv")
    assert names(find_files(tmp_path / "A.TAR", "**/*")) == ["A.TAR"]
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(b""))
    for file, reason in ("x.tar.gz", r"\*.tar.gz\), unpack them first: 1"), ("x.csv", r"unknown kind \(\*.csv\)"):
        with pytest.raises(UserError, match=reason):
            find_files(tmp_path / file, "**/*")


def test_files_without_samples_are_listed(tmp_path):
    fill(tmp_path, "empty.jsonl")
    (tmp_path / "full.jsonl").write_text('{"image": "a", "caption": "b"}\n')
    listing = find_files(tmp_path, "**/*")
    assert [part.file for part in divide(listing, 10)] == ["full.jsonl"]
    assert passed_over(listing) == {"files without samples": ["empty.jsonl"]}
    (tmp_path / "sub").mkdir()
    write_parquet(tmp_path / "sub" / "none.parquet", image=pa.array([], pa.binary()), caption=pa.array([], pa.string()))
    listing = find_files(tmp_path / "sub", "**/*")
    assert divide(listing, 10) == [] and passed_over(listing) == {"files without samples": ["none.parquet"]}


def test_a_folder_that_vanishes_meanwhile_is_passed_over(tmp_path, monkeypatch):
    fill(tmp_path, "a.tar", "b/c.tar", "d/e.tar")

    identity = listing._identity

    def vanish(folder):
        if folder.name == "b":
            shutil.rmtree(folder)
        return identity(folder)

    monkeypatch.setattr(listing, "_identity", vanish)
    found = find_files(tmp_path, "**/*")
    assert names(found) == ["a.tar", "d/e.tar"]
    assert passed_over(found) == {"folders that cannot be read (No such file or directory)": ["b"]}
