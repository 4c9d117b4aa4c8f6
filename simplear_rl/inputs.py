"""What a command reads must be there before it starts: found, made by the embedded world, or refused."""

import os
from pathlib import Path

from simplear_rl.config import CommandConfig
from simplear_rl.errors import UserError
from simplear_rl.files import is_hub_id


def require(config: CommandConfig, *paths: Path) -> None:
    """Make sure that every path exists; the embedded world makes its own where they are missing.

    A Hugging Face id is fetched by what reads it.

    Raises:
        UserError: a path is missing and `config.world` does not make it.
    """
    for path in paths:
        if path.exists() or is_hub_id(path):
            continue
        if config.world == "shapes":
            from simplear_rl.shapes import prepare

            if path in prepare.products(config.root):
                prepare.make(path, config)
                continue
        raise UserError(f"{path}: not found, and no earlier stage or embedded world makes it")


def require_writable(folder: Path, key: str) -> None:
    """Raise UserError unless `folder` is, or can become, a folder that files can be written to; touches nothing.

    `key` is where the user named it.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{folder}: {existing} is a file, not a folder; choose another `{key}`")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: {existing} cannot be written to; choose another `{key}`, or change its rights")
