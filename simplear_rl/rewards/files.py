"""Reward models, looked at before any actor starts: their files, functions and servers."""

import json
from collections.abc import Sequence
from pathlib import Path

from simplear_rl.benchmarks.geneval_metadata import read_entries
from simplear_rl.config.rewards import GenEvalRewardConfig, HttpRewardConfig, ImageTextRewardConfig, RewardConfig
from simplear_rl.data.prompts import PromptRow
from simplear_rl.errors import UserError
from simplear_rl.files import require_weights
from simplear_rl.rewards.http import HttpReward
from simplear_rl.rewards.trial import try_functions
from simplear_rl.shapes.world import metadata


def check_files(config: RewardConfig, rows: Sequence[PromptRow]) -> None:
    """Raise UserError if a local file of a reward model is missing or damaged, as far as that shows without loading.

    Or if GenEval's metadata has no entry for one of the prompts, a function of the user's does not take or return what
    it should, or a server does not score two black images.
    """
    texts = sorted({row.text for row in rows})
    for model in config.models:
        if isinstance(model, GenEvalRewardConfig):
            require_entries(read_requirements(model), model, texts)
        elif isinstance(model, ImageTextRewardConfig):
            for path in model.files:
                _check_network(path)
    try_functions(config, rows)
    for model in config.models:
        if isinstance(model, HttpRewardConfig):
            HttpReward(model).check([row.text for row in rows[:2]], [row.columns for row in rows[:2]])


def _check_network(path: Path) -> None:
    if path.is_dir():
        settings = path / "open_clip_config.json"
        try:
            json.loads(settings.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{settings}: expected the configuration of an open_clip model: {error}") from error
        if not any(path.glob("*.bin")) or any(path.glob("*.safetensors")):
            require_weights(path)
    elif not path.stat().st_size:
        raise UserError(f"{path}: empty, expected the weights of a reward model")


def read_requirements(config: GenEvalRewardConfig) -> dict[str, dict]:
    """GenEval's metadata entries by prompt: those of the file, or of the miniature world's captions.

    Raises:
        UserError: see `read_entries`; two entries ask for different things of one prompt.
    """
    entries: dict[str, dict] = {}
    for entry in read_entries(config.metadata) if config.metadata else metadata():
        if entries.setdefault(entry["prompt"], entry) != entry:
            raise UserError(f"{config.metadata}: two entries of {entry['prompt']!r} ask for different things")
    return entries


def require_entries(entries: dict[str, dict], config: GenEvalRewardConfig, prompts: Sequence[str]) -> None:
    """Raise UserError unless every prompt has an entry."""
    if missing := [prompt for prompt in prompts if prompt not in entries]:
        source = config.metadata or "the miniature world"
        raise UserError(
            f"reward geneval: {source} does not say what images of {missing[0]!r} must show, nor of "
            f"{len(missing) - 1} more of {len(prompts)} prompts"
        )
