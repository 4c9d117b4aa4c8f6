"""What a command reads must be there before it starts: found, made by the embedded world, or refused."""

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
