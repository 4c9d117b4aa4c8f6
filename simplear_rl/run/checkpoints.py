"""Checkpoint folders on disk: written whole or not at all, verified before they are used, removed by rule."""

import errno
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

from simplear_rl.config.stages import GrpoConfig, StageConfig
from simplear_rl.errors import UserError, causes
from simplear_rl.files import count_weights, publish, sync, write_text
from simplear_rl.policy.sizes import BYTES

CHECKSUMS = "checksums.json"  # inside every checkpoint: file -> SHA-256
# Of one weight, in either precision: the model as it is published, the learner's copy, and AdamW's three values in
# float32 (with float32 weights, two: the copy is one of them).
BYTES_PER_WEIGHT = 16
BEHIND = "behind"  # with rollout.ahead: the policy before the last step, with which the next one's samples are drawn
REFUSED_BY_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
FULL = 2**20  # bytes; with less, a disk is full for any writer


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run folder that were written to their end, oldest first. What they hold is not verified here."""
    return steps_in(run / "checkpoints")


def steps_in(folder: Path) -> list[Path]:
    """The folders step-N, in order of N. Others, step-N.damaged for one, are left out."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdecimal()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(checkpoint.name.removeprefix("step-"))


def newest_intact(run: Path) -> Path | None:
    """The newest checkpoint whose files are what was written; damaged ones are set aside, with a line each.

    Raises:
        UserError: the storage does not let it be read, which says nothing of what is there.
    """
    for folder in reversed(checkpoints(run)):
        try:
            problem = damage(folder)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be read: {error}; nothing was changed. Start again when it can be read, or move it "
                "elsewhere to continue from the checkpoint before it"
            ) from error
        if problem is None:
            return folder
        aside = _unused(folder.with_suffix(".damaged"))
        folder.rename(aside)
        print(f"{folder}: damaged: {problem}; set aside as {aside.name}, the checkpoint before it is used", flush=True)
    return None


def damage(folder: Path) -> str | None:
    """What differs between a checkpoint and its checksums; None if nothing does.

    Raises:
        OSError: something of it is there and cannot be read.
    """
    try:
        expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        found = {str(file.relative_to(folder)) for file in _files(folder)} - {CHECKSUMS}
        if missing := sorted(expected.keys() - found):
            return f"{missing[0]} is missing"
        if unknown := sorted(found - expected.keys()):
            return f"{unknown[0]} is not in {CHECKSUMS}"
        changed = (name for name in sorted(expected) if _sha256(folder / name) != expected[name])
        return next((f"{name} is not what was written" for name in changed), None)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, AttributeError) as error:
        return f"cannot be verified: {error}"


def begin_checkpoint(folder: Path, save: Callable[[Path], Callable[[], None]]) -> Callable[[], None]:
    """Copy the state of a checkpoint now, and return the function that writes it.

    `save(folder)` copies the state to memory and returns a function that writes it. Returns `finish()`, which calls
    that function, adds checksums and renames the folder into place. `finish` may run in any thread.

    Raises:
        UserError: here or in `finish`: the disk is full or cannot be written to. The unfinished folder is removed.
    """
    # The name is new each time: a learner that was killed while it wrote may not be quite gone yet.
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.partial")
    with _disk_may_refuse(folder, partial):
        partial.mkdir(parents=True)
        write = save(partial)

    def finish() -> None:
        with _disk_may_refuse(folder, partial):
            write()
            sums = {str(file.relative_to(partial)): _sha256(file) for file in _files(partial)}
            (partial / CHECKSUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
            publish(partial, folder)

    return finish


@contextmanager
def _disk_may_refuse(folder: Path, partial: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # writers have errors of their own for a full disk, as torch's RuntimeError
        free = shutil.disk_usage(folder.parent).free if folder.parent.exists() else 0
        refusal = next((cause for cause in causes(error) if getattr(cause, "errno", None) in REFUSED_BY_DISK), None)
        if not refusal and free >= FULL:
            raise
        written = size(partial)
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"{folder}: the checkpoint cannot be written: {refusal or error}; {written:,} bytes were, {free:,} are "
            "free: the checkpoints before it are untouched; make room, and the same command continues from the last one"
        ) from error


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; one of which a part is left is never found, and deleted when the run begins again."""
    partial = checkpoint.with_suffix(".partial")
    checkpoint.rename(partial)
    try:
        shutil.rmtree(partial)
    except OSError as error:  # as of files that somebody reads, on NFS
        print(f"{checkpoint}: expired, and cannot be deleted whole yet: {error}", flush=True)


def reference_policy(config: GrpoConfig, step: int) -> Path:
    """Policy folder of the reference of step `step`: `start`, or what a checkpoint holds."""
    refreshed = config.reference_step(step)
    folder = config.run / "checkpoints" / f"step-{refreshed:06d}" / config.reference.refresh_with
    return folder if refreshed else config.start


def expired(run: Path, config: StageConfig, rows: list[dict[str, float]]) -> list[Path]:
    """The checkpoints that no rule keeps: the last k, every n-th step, the best by a metric, what has a reference.

    `rows` are the run's metrics. A checkpoint's value is the mean over the last `checkpoint_every` steps, of a score
    the last one in them: it is that of the nearest weights.
    """
    done = checkpoints(run)
    kept = set(done[-config.keep_checkpoints :])
    if config.keep_every:
        kept |= {folder for folder in done if step_of(folder) % config.keep_every == 0}
    if config.keep_best and done:
        best, every = config.keep_best, config.checkpoint_every

        def value(folder: Path) -> float:
            step = step_of(folder)
            values = [row[best.metric] for row in rows if step - every < row["step"] <= step and best.metric in row]
            if not values:  # from before it was logged
                return -inf
            found = values[-1] if best.is_score else sum(values) / len(values)
            return -found if best.lowest else found

        highest = max(done, key=value)
        if value(highest) > -inf:
            kept.add(highest)
    if isinstance(config, GrpoConfig):  # what a run needs that continues from one that is kept
        steps = {config.reference_step(step_of(folder) + 1) for folder in kept}
        kept |= {folder for folder in done if step_of(folder) in steps}
    return [folder for folder in done if folder not in kept]


def require_space(config: StageConfig) -> None:
    """Raise UserError unless one more checkpoint fits: as large as the last one or, before the first, an estimate."""
    run, done = config.run, checkpoints(config.run)
    average = BYTES["float32"] if config.learner.ema is not None else 0
    behind = BYTES[config.learner.dtype] if isinstance(config, GrpoConfig) and config.rollout.ahead else 0
    needed = size(done[-1]) if done else (BYTES_PER_WEIGHT + average + behind) * count_weights(config.start)
    existing = next(folder for folder in (run, *run.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{run}: a checkpoint takes about {needed:,} bytes, {free:,} are free there: make room, or choose another "
            "`run`"
        )


def require_storage(run: Path) -> None:
    """Raise UserError unless the storage does what a run needs: grow a file, replace one, rename a folder.

    Object storage mounted as a file system may refuse any of them, which would else show at the first checkpoint.
    """
    probe = run / f"probe.{secrets.token_hex(4)}.partial"
    try:
        write_text(probe / "before" / "file", "")
        write_text(probe / "before" / "file", "a")
        with (probe / "before" / "file").open("a", encoding="utf-8") as file:
            file.write("b")
        sync(probe / "before")
        (probe / "before").rename(probe / "after")
    except (OSError, UserError) as error:
        refusal = error.__cause__ or error  # of `write_text`, what the storage said
        raise UserError(
            f"{run}: this storage cannot hold a run: {refusal}; a run appends to files, replaces them and renames "
            "folders: choose another `run`, and copy it there once it is finished"
        ) from refusal
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def is_model_of(folder: Path, checkpoint: Path) -> bool:
    """Whether a folder holds the files of a checkpoint's model, byte for byte."""
    sums = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
    model = {name.removeprefix("model/"): value for name, value in sums.items() if name.startswith("model/")}
    return {str(file.relative_to(folder)): _sha256(file) for file in _files(folder)} == model


def weights_sha256(policy: Path) -> str | None:
    """What tells the weights of a policy folder from others that may follow at its path; None if none are there.

    Those of a checkpoint are not read: its checksums name them.
    """
    folder = policy.resolve()
    try:
        sums = dict(json.loads((folder.parent / CHECKSUMS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # of no checkpoint, or damaged
        sums = {}
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        digest.update(f"{file.name} {sums.get(f'{folder.name}/{file.name}') or _sha256(file)}\n".encode())
    return digest.hexdigest() if files else None


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in _files(folder))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _unused(path: Path) -> Path:
    """`path`, or with a number behind it if that is taken."""
    names = [path, *(path.with_name(f"{path.name}-{n}") for n in range(2, 1000))]
    return next(name for name in names if not name.exists())
