"""What a command reads must be there before it starts: found, made by a stage or the miniature world, or refused."""

from collections.abc import Callable, Mapping
from pathlib import Path

from simplear_rl.config.base import CONFIGS, CommandConfig
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.errors import UserError
from simplear_rl.files import is_hub_id

Stages = Mapping[str, Callable[[SupervisedConfig], None]]  # by name, what runs a training stage


def require(config: CommandConfig, *paths: Path, stages: Stages | None = None) -> None:
    """Make sure that every path exists; the embedded world makes its own where they are missing.

    Where a stage of `stages` is missing its result, `root/<stage>/final`, it is run. A Hugging Face id is fetched by
    what reads it.

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
            if stage := next((name for name in stages or () if path == config.root / name / "final"), None):
                assert stages
                prepare.announce(path)
                values = [f"root={config.root}", f"seed={config.seed}"]
                stages[stage](load_config(SupervisedConfig, CONFIGS / "shapes" / f"{stage}.yaml", values))
                continue
        raise UserError(f"{path}: not found, and no earlier stage or embedded world makes it")
