"""A job that is submitted from a checkout: what Ray uploads, and where its run folder may be."""

import re
import zipfile
from pathlib import Path

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package

from simplear_rl.cli import EXAMPLES
from simplear_rl.errors import UserError
from simplear_rl.files import require_writable
from tests.cluster.conftest import ROOT

WRITES = re.compile(r"(?:--output[ =]|\b(?:output|root|run)=)([\w.][\w./-]*)")
COPY = "ray/session_2026-11-26_14-19-51_900843_1382/runtime_resources/working_dir_files/_ray_pkg_1a2b"


def written_by_the_documents() -> set[str]:
    """The folders, relative to the checkout, that the documented commands write to, and `generate` by default."""
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*/*.yaml")]
    texts = [file.read_text() for file in files] + [EXAMPLES.format(name="grpo")]
    found = {folder for text in texts for folder in WRITES.findall(text)}
    generate = yaml.safe_load((ROOT / "configs" / "shapes" / "generate.yaml").read_text())
    return found | {generate["output"], "runs/demo"}


def packed(checkout: Path, excludes: list[str] | None = None) -> set[str]:
    """The files that Ray would upload."""
    package = checkout.parent / "package.zip"
    create_package(str(checkout), package, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(package) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The files of this checkout that decide, in a folder of their own."""
    folder = tmp_path / "checkout"
    sources = ["README.md", "configs/dpg/evaluate.yaml", "configs/shapes/grpo.yaml", "simplear_rl/run/folder.py"]
    for name in [".gitignore", "prompts.txt", *sources]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes() if (ROOT / name).exists() else b"a circle\n")
    return folder


def test_nothing_that_the_documents_make_is_uploaded(checkout):
    made = written_by_the_documents()
    assert {"runs/scores", "policies/start", "tokens", "scores", "dpg", "pictures", "images", "runs/one"} <= made
    before = packed(checkout)
    assert {"prompts.txt", "configs/dpg/evaluate.yaml", "simplear_rl/run/folder.py"} <= before
    (checkout.parent / "package.zip").unlink()
    for folder in made:
        (checkout / folder / "images").mkdir(parents=True, exist_ok=True)
        (checkout / folder / "images" / "0.png").write_bytes(b"png")
    assert packed(checkout) == before


def test_neither_is_a_link_to_a_larger_disk_nor_the_environment(checkout, tmp_path):
    before = packed(checkout)
    (checkout.parent / "package.zip").unlink()
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "model.safetensors").write_bytes(b"weights")
    for name in "runs", "policies", ".venv":
        (checkout / name).symlink_to(disk)
    (checkout / "actors" / "__pycache__").mkdir(parents=True)
    (checkout / "actors" / "__pycache__" / "pool.pyc").write_bytes(b"code")
    assert packed(checkout) == before


@pytest.mark.parametrize("run", ["runs/one", ".", "../one"])
def test_a_run_folder_in_a_jobs_copy_of_the_checkout_is_refused(tmp_path, monkeypatch, run):
    copy = tmp_path / COPY
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(UserError, match=f"^{re.escape(run)}: in a submitted job this is .*session_2026.*for `run`$"):
        require_writable(Path(run), "run")
    assert list(copy.iterdir()) == []
    require_writable(tmp_path / "runs" / "one", "run")


def test_so_is_one_through_a_link_to_rays_latest_session(tmp_path):
    (tmp_path / COPY).mkdir(parents=True)
    (tmp_path / "latest").symlink_to(tmp_path / "ray" / "session_2026-11-26_14-19-51_900843_1382")
    with pytest.raises(UserError, match="in Ray's temporary folder, where nothing stays"):
        require_writable(tmp_path / "latest" / "runs", "run")
    require_writable(tmp_path / "session_notes" / "runs", "run")
