"""Reward models and judges, looked at before any actor starts: their files, functions and servers."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from simplear_rl.benchmarks.geneval2_files import Entry
from simplear_rl.benchmarks.geneval2_files import read_entries as read_geneval2
from simplear_rl.benchmarks.geneval_metadata import read_entries
from simplear_rl.config.benchmarks import DetectorConfig
from simplear_rl.config.dpo import DpoConfig
from simplear_rl.config.rewards import (
    HPSV2_REPOSITORY,
    HPSV2_WEIGHTS,
    ClipRewardConfig,
    GenEval2RewardConfig,
    GenEvalRewardConfig,
    HpsV2RewardConfig,
    HttpRewardConfig,
    RewardConfig,
    RewardModelConfig,
)
from simplear_rl.config.stages import GrpoConfig
from simplear_rl.data.prompts import PromptRow
from simplear_rl.errors import UserError
from simplear_rl.files import require_from_hub
from simplear_rl.rewards.http import HttpReward
from simplear_rl.rewards.trial import try_functions
from simplear_rl.shapes.world import metadata
from simplear_rl.vision.files import require_clip, require_detector, require_judge, require_model, require_network


def model_checks(config: GrpoConfig | DpoConfig) -> list[Callable[[], None]]:
    """Checks of the reward models and of what judges evaluations, see `require`: whether each is there and whole."""
    judge = [partial(require_judge, config.evaluation)] if config.evaluation else []
    return [*(reward_checks(config.reward.models) if config.reward else []), *judge]


def reward_checks(models: Sequence[RewardModelConfig]) -> list[Callable[[], None]]:
    """Checks of the reward models alone."""
    return [partial(_check_model, model) for model in models]


def check_rewards(config: RewardConfig, rows: Sequence[PromptRow]) -> None:
    """Raise UserError if the rewards do not fit the rows of the prompts file.

    GenEval's metadata has no entry for one of the prompts, a function of the user's does not take or return what it
    should, or a server does not score two black images.
    """
    for model in config.models:
        if isinstance(model, GenEvalRewardConfig):
            require_entries(read_requirements(model), model, sorted({row.text for row in rows}))
        if isinstance(model, GenEval2RewardConfig):
            require_questions(read_questions(model), model, sorted({row.text for row in rows}))
    try_functions(config, rows)
    for model in config.models:
        if isinstance(model, HttpRewardConfig):
            HttpReward(model).check([row.text for row in rows[:2]], [row.columns for row in rows[:2]])


def _check_model(model: RewardModelConfig) -> None:
    match model:
        case ClipRewardConfig():
            require_clip("clip reward", model.model, model.weights)
        case HpsV2RewardConfig():
            require_network("hpsv2 reward", model.model)
            if model.weights in HPSV2_WEIGHTS:
                require_from_hub(HPSV2_REPOSITORY, HPSV2_WEIGHTS[model.weights])
            elif os.path.exists(model.weights) and not os.path.getsize(model.weights):
                raise UserError(f"{model.weights}: empty, expected the weights of a reward model")
        case GenEvalRewardConfig() if model.metadata:
            require_detector(model.detector or DetectorConfig())
        case GenEval2RewardConfig():
            require_model("geneval2 reward", model.judge)


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


def read_questions(config: GenEval2RewardConfig) -> dict[str, Entry]:
    """GenEval 2's entries by prompt. Raises UserError, see geneval2_files.read_entries."""
    return {entry.prompt: entry for entry in read_geneval2(config.questions)}


def require_questions(entries: Mapping[str, Entry], config: GenEval2RewardConfig, prompts: Sequence[str]) -> None:
    """Raise UserError unless there are questions for every prompt."""
    if missing := [prompt for prompt in prompts if prompt not in entries]:
        raise UserError(
            f"reward geneval2: {config.questions} has no questions for {missing[0]!r}, nor for {len(missing) - 1} more "
            f"of {len(prompts)} prompts"
        )
