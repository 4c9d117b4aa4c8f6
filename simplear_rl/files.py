"""Files and folders: written whole or not at all, and found on this machine or on the Hugging Face Hub."""

import errno
import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from simplear_rl.errors import UserError

CONTACT_SHEET = "contact_sheet.png"  # an overview of drawn images; it is no image of a prompt
HUB_NAME = re.compile(r"\w[\w.-]*", re.ASCII)  # not `..`, `~`, `$HOME` or `s3:`
NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM)  # how storage says that it lacks an operation


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears at `path` only when it is complete."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    publish(partial, path)


def publish(partial: Path, path: Path) -> None:
    """Give a complete folder its name once it is on the disk: else a crash can leave the name on empty files."""
    for written in (*partial.rglob("*"), partial):
        sync(written)
    partial.rename(path)
    sync(path.parent)


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Where the storage refuses what is written within (it is full, for example, or read-only): UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_text(file: Path, text: str) -> None:
    """Write a file that appears only when it is complete, on the disk too; its folder is made if need be.

    Raises:
        UserError: see `writing_to`.
    """
    with writing_to(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        # Two processes may write the same file, as a training and `report` do: each its own part.
        partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}.partial")
        try:
            partial.write_text(text, encoding="utf-8")
            sync(partial)  # else a crash can leave the new name on an empty file
            partial.rename(file)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def rendered(package: str, template: str, **values: Any) -> str:
    """The page that a template of a package makes of some values."""
    import jinja2  # not above: --help needs none of it

    source = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    return jinja2.Template(source, autoescape=True, trim_blocks=True, lstrip_blocks=True).render(**values)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, where the storage knows how to."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        os.close(descriptor)


def require_writable(folder: Path, key: str) -> None:
    """Raise UserError unless `folder` is, or can become, a folder that files can be written to; touches nothing.

    Ray's copy of a job's working directory is none. `key` is where the user named it.
    """
    real = os.path.realpath(folder)
    if re.search(r"/session_\d{4}-\d\d-\d\d_[^/]*/", f"{real}/"):
        raise UserError(
            f"{folder}: in a submitted job this is {real}, in Ray's temporary folder, where nothing stays. "
            f"Choose an absolute path on a volume that all nodes share for `{key}`"
        )
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not os.path.isdir(existing):
        found = "a file, not a folder" if os.path.exists(existing) else "a link that leads nowhere"
        raise UserError(f"{folder}: {existing} is {found}; choose another `{key}`")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: {existing} cannot be written to; choose another `{key}`, or change its rights")


def is_there(path: Path) -> bool:
    """Whether a file or folder exists. Raises UserError if that cannot be told, for example for want of rights."""
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"{path}: cannot be looked at: {error.strerror}") from error


def is_hub_id(path: Path) -> bool:
    """Whether `path` is a Hugging Face id: it reads `owner/name`, and no file or folder of that name is here."""
    return len(path.parts) == 2 and all(map(HUB_NAME.fullmatch, path.parts)) and not os.path.exists(path)


def require_there(path: Path) -> None:
    """Raise UserError unless there is something at the path, or it is a Hugging Face id."""
    if not is_there(path) and not is_hub_id(path):
        raise UserError(f"{path}: not found")


def resolve(source: Path, files: Sequence[str], kind: Literal["model", "dataset"] = "model") -> Path:
    """The folder that `source` names: itself or, of a Hugging Face id, the download of those `files` (patterns).

    Raises:
        UserError: the Hub cannot be reached or refuses.
    """
    if not is_hub_id(source):
        return source
    from huggingface_hub import snapshot_download  # not above: it takes a second, and --help needs none of it
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(str(source), repo_type=kind, allow_patterns=list(files)))
    except (OSError, ValueError, HTTPError) as error:  # ValueError: no id, or a broken proxy setting
        raise UserError(
            f"{source}: no folder of that name, and the Hugging Face Hub does not give it: {error}"
        ) from error


def require_from_hub(repository: str, *files: str) -> None:
    """Make sure that the Hugging Face cache or the Hub has one of `files`, without fetching it.

    Raises:
        UserError: neither has, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    problem: Exception | None = None
    for file in files:
        try:
            hf_hub_download(repository, file, dry_run=True)
            return
        except (OSError, ValueError, HTTPError) as error:
            problem = error
    raise UserError(
        f"{repository}: {' or '.join(files)} is not in the Hugging Face cache, and the Hub does not give it: {problem}"
    ) from problem


def require_weights(folder: Path) -> None:
    """Raise UserError unless the weights of a model folder are there and readable, see `count_weights`."""
    count_weights(folder)


def count_weights(folder: Path) -> int:
    """Weights in a model folder, from the headers of its safetensors files.

    Raises:
        UserError: there are none, or one is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no weights there (*.safetensors)")
    count = 0
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: not a readable safetensors file: {error}") from error
        count += sum(prod(shape) for shape in shapes)
    return count


def repeated(names: Iterable[str]) -> list[str]:
    """Those of the names that come more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError: it is none, or an object in it has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, as an `object_pairs_hook`. Raises ValueError if it has a key twice, of which one would be lost."""
    if twice := repeated(key for key, _ in pairs):
        raise ValueError(f"two keys are called {' and '.join(twice)}")
    return dict(pairs)
