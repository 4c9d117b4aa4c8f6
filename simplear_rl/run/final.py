"""`final` of a run folder: the policy of the last step, as a link or, where the storage has no links, as a copy."""

import shutil
from pathlib import Path

from simplear_rl.errors import UserError
from simplear_rl.files import NOT_OFFERED
from simplear_rl.run.checkpoints import is_model_of


def require_replaceable(run: Path, checkpoint: Path | None) -> None:
    """Raise UserError if something stands at `final` that is neither a link nor a copy of the checkpoint's model."""
    final = run / "final"
    if final.is_symlink() or not final.exists():
        return
    if checkpoint is None or not final.is_dir() or not is_model_of(final, checkpoint):
        found = "a folder that holds another policy than the last checkpoint" if final.is_dir() else "a file"
        raise UserError(
            f"{final}: expected a link to the run's last policy, found {found}: move it away, and the same command "
            "goes on"
        )


def remove_copy(run: Path) -> None:
    """Remove a `final` that is a copy, before its run goes on: the last checkpoint holds the same."""
    if not (run / "final").is_symlink():
        shutil.rmtree(run / "final", ignore_errors=True)


def set_final(run: Path, checkpoint: Path) -> None:
    """Let `final` be the model of a checkpoint; nothing happens where it is that already.

    Raises:
        UserError: something else stands there, or the folder cannot be written to.
    """
    require_replaceable(run, checkpoint)
    final, target = run / "final", Path("checkpoints") / checkpoint.name / "model"
    if final.readlink() == target if final.is_symlink() else final.exists():
        return
    partial = run / "final.partial"
    try:
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
        try:
            partial.symlink_to(target)
        except OSError as error:
            if error.errno not in NOT_OFFERED:
                raise
            print(f"{final}: this storage has no links ({error.strerror}); it becomes a copy of {target}", flush=True)
            shutil.copytree(run / target, partial)
        if final.is_symlink() and partial.is_dir() and not partial.is_symlink():
            final.unlink()  # no folder takes a link's place
        partial.rename(final)
    except OSError as error:
        raise UserError(f"{final}: cannot be set to {target}: {error}") from error
