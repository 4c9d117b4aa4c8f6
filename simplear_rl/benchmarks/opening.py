"""The beginning of an evaluation: everything that it needs is looked for before an actor starts."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from simplear_rl.benchmarks.benchmark import Benchmark, require_images
from simplear_rl.benchmarks.output import open_folder, unfinished
from simplear_rl.benchmarks.scorer import BENCHMARKS
from simplear_rl.config.benchmarks import BenchmarkConfig, EvaluateConfig
from simplear_rl.files import require_weights, require_writable
from simplear_rl.inputs import require, require_same_tokenizer
from simplear_rl.policy.vocabulary import ImageLayout, PromptEncoder, read_encoder, read_layout
from simplear_rl.vision.files import require_judge


@dataclass(frozen=True)
class OpenEvaluation:
    """An evaluation that can begin, or go on."""

    benchmark: Benchmark
    layout: ImageLayout | None  # of the policy's images; None: those of others are judged
    todo: list[int]  # prompts whose images are not judged yet


def open_evaluation(config: EvaluateConfig, stages: Mapping[str, Callable[[Any], None]]) -> OpenEvaluation:
    """Look for all that is needed, and open the folder `output`. `stages` make what is missing, see `require`.

    Raises:
        UserError: something is missing, or does not fit the rest.
    """
    read, others = partial(BENCHMARKS[config.benchmark], config), config.score_only
    drawing = [config.tokenizer, config.policy] if config.policy and not others else []
    checks: list[Callable[[], object]] = [partial(require_writable, config.output, "output"), read]
    judging = not os.path.exists(config.output / "scores.json")  # else all is judged, and the page is made anew
    models = config.models if judging else []
    checks += [partial(require_judge, config)] if judging else []
    require(config, *drawing, *models, stages=stages, checks=checks)
    benchmark = read()
    checksums = require_images(benchmark, others, config.images_per_prompt, config.allow_missing) if others else None
    layout = _check(config, benchmark, config.policy) if config.policy and not others else None
    open_folder(config, benchmark)
    return OpenEvaluation(benchmark, layout, unfinished(config, benchmark, checksums))


def _check(config: EvaluateConfig, benchmark: Benchmark, policy: Path) -> ImageLayout:
    """The policy's layout, once policy, tokenizer and prompts are known to fit each other. Raises UserError."""
    layout = read_layout(policy, config.tokenizer)
    require_same_tokenizer(config.tokenizer, [policy], accept=config.accept_tokenizer)
    encode = read_encoder(policy, config.engine.max_prompt_tokens)
    check_prompts(config, benchmark, encode)
    require_weights(policy)
    return layout


def check_prompts(config: BenchmarkConfig, benchmark: Benchmark, encode: PromptEncoder) -> None:
    """Raise UserError unless the policy has room for all that is drawn."""
    for text in benchmark.texts:
        encode(text)
    if config.negative_prompt:
        encode(config.negative_prompt, config.negative_prefix)
