"""Files and folders: what the storage refuses is said in one message."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from simplear_rl.errors import UserError
from simplear_rl.files import is_hub_id, is_there, require_writable, write_text


@pytest.mark.parametrize("place", ["file/below.txt", "x" * 300, "folder"])
def test_a_file_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{place}: cannot be written: [A-Z]"):
        write_text(tmp_path / place, "text")


@pytest.fixture
def without_rights(monkeypatch):
    """A folder `locked` that nobody may enter, also as root."""
    stat = os.stat

    def refuse(path, *args, **options):
        if "/locked/" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", refuse)


def test_a_path_that_cannot_be_looked_at_is_named(tmp_path, without_rights):
    assert is_there(tmp_path) and not is_there(tmp_path / "none")
    with pytest.raises(UserError, match="locked/x: cannot be looked at: Permission denied"):
        is_there(tmp_path / "locked" / "x")


def test_the_folder_above_one_that_cannot_be_looked_at_is_asked_for(tmp_path, without_rights):
    (tmp_path / "locked").touch()
    with pytest.raises(UserError, match="locked is a file, not a folder; choose another `run`"):
        require_writable(tmp_path / "locked" / "x", "run")


def test_a_name_too_long_for_a_file_may_be_one_of_the_hub():
    assert is_hub_id(Path("owner", "x" * 300))


@pytest.mark.parametrize("path", ["$HOME/x", "~nobody1/x", "../x", "s3:/bucket", "/x", "a b/x", "owner/name/more"])
def test_what_cannot_be_a_name_there_is_no_id_of_the_hub(path):
    assert not is_hub_id(Path(path))


@pytest.mark.parametrize("target", ["loop", "nowhere", "missing/disk"])
@pytest.mark.parametrize("below", ["", "/below"])
def test_a_folder_behind_a_link_that_leads_nowhere_is_refused(tmp_path, target, below):
    (tmp_path / "loop").symlink_to(target)
    with pytest.raises(UserError, match="/loop is a link that leads nowhere; choose another `run`"):
        require_writable(Path(f"{tmp_path}/loop{below}"), "run")


def test_two_writers_of_a_file_never_show_a_part_of_it(tmp_path):
    texts = ["a" * 2_000_000, "b" * 2_000_000]
    write_text(tmp_path / "page", texts[0])
    with ThreadPoolExecutor(2) as writers:
        for written in [writers.submit(write_text, tmp_path / "page", text) for text in texts * 20]:
            assert (tmp_path / "page").read_text() in texts
            written.result()
    assert [file.name for file in tmp_path.iterdir()] == ["page"]
