"""Evaluation on actors: engines draw a benchmark's images, scorers judge them; by itself, or while a stage trains."""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from time import monotonic

import ray
from ray.actor import ActorHandle
from tqdm import tqdm

from actors.placement import Stage
from actors.pool import Pool
from actors.rollout import stream
from actors.scorer import ScorerActor
from simplear_rl.benchmarks.benchmark import Benchmark
from simplear_rl.benchmarks.opening import check_prompts
from simplear_rl.benchmarks.output import open_folder, unfinished, write_results
from simplear_rl.benchmarks.scorer import BENCHMARKS
from simplear_rl.benchmarks.spread import spread_names
from simplear_rl.config.base import CommandConfig, PoolConfig
from simplear_rl.config.benchmarks import BenchmarkConfig, EvaluateConfig, EvaluationConfig
from simplear_rl.config.dpo import DpoConfig
from simplear_rl.config.rollout import EngineConfig
from simplear_rl.config.stages import GrpoConfig, StageConfig, SupervisedConfig
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.sizes import read_sizes
from simplear_rl.policy.vocabulary import read_encoder, read_layout
from simplear_rl.rollout.capacity import images_at_once

STEP = 0  # of all seeds: no step of training has it
Drawing = Callable[[Draw], Iterator[tuple[int, ray.ObjectRef]]]  # indices of prompts with references to their Rollouts


def draw_and_judge(
    config: EvaluateConfig,
    benchmark: Benchmark,
    todo: Sequence[int],
    drawing: Drawing,
    scorers: list[ActorHandle],
) -> None:
    """Draw and judge the images of the prompts `todo`. Their seeds do not depend on what else is drawn."""
    prompts = [Prompt(i, benchmark.texts[i]) for i in todo]
    sampling = Sampling(temperature=config.temperature, guidance_scale=config.guidance_scale)
    negative = config.negative_prompt, config.negative_prefix
    draw = Draw(prompts, config.images_per_prompt, config.seed, STEP, sampling, *negative)
    free = cycle(scorers)
    pending: list[ray.ObjectRef] = []
    for _, rollout in tqdm(drawing(draw), desc="evaluate", total=len(prompts), unit="prompt", leave=None):
        pending = _unfinished([*pending, next(free).judge_rollout.remote(rollout, config.output)])
    ray.get(pending)


def by_engines(
    engines: Pool, contexts: int, version: int, weights: Callable[[], ray.ObjectRef] | Path | None
) -> Drawing:
    """For `draw_and_judge`: engines that hold the weights of `version`, see actors.rollout.stream."""
    return lambda draw: stream(engines, draw, contexts, version, weights)


def judge(config: EvaluateConfig, todo: Sequence[int], scorers: list[ActorHandle]) -> None:
    """Judge the images of the prompts `todo`, which are there already."""
    free = cycle(scorers)
    verdicts = [next(free).judge.remote(i, config.images, config.output) for i in todo]
    for verdict in tqdm(verdicts, desc="evaluate", unit="prompt"):
        ray.get(verdict)


def _unfinished(verdicts: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """Those that are not there yet; raises the error of one that failed."""
    there, pending = ray.wait(verdicts, num_returns=len(verdicts), timeout=0)
    ray.get(there)
    return pending


class Evaluation:
    """The evaluations of a run: every `evaluation.every` steps and after the last, with the weights of the step.

    `engine` is what draws the images.

    Each is what `python -m simplear_rl.evaluate` makes of that policy, in the folder run/evaluations/step-N. All of
    them draw with the same random numbers, which no step of training draws with. Without `evaluation` in the
    configuration none is ever due.

    Raises:
        UserError: the benchmark's files are bad, too few of its prompts are chosen for a score, its images do not fit
            the engines, or `keep_best.metric` is a score that there is not.
    """

    def __init__(self, config: GrpoConfig | DpoConfig | SupervisedConfig, engine: EngineConfig):
        self.run, self.steps, self.evaluation = config.run, config.steps, config.evaluation
        self.names: list[str] = []
        if self.evaluation:
            self.config = _evaluate_config(config, self.evaluation, engine)
            self.benchmark = BENCHMARKS[self.config.benchmark](self.config)
            spread = spread_names(self.config.images_per_prompt) if self.config.diversity else []
            self.names = [f"evaluation_{name}" for name in [*self.benchmark.score_names(), *spread]]
            encode = read_encoder(config.start, engine.max_prompt_tokens)
            check_prompts(self.config, self.benchmark, encode)
            self.layout = read_layout(config.start)
            if self.evaluation.guidance_scale != 1:  # training may draw unguided, with half the contexts
                key = "evaluation.engine" if isinstance(config, SupervisedConfig) else "rollout.engine"
                images_at_once(read_sizes(config.start), engine, guided=True, key=key)

        best = config.keep_best
        if best and best.metric.startswith("evaluation_") and best.metric not in self.names:
            there = f"there are {', '.join(self.names)}" if self.evaluation else "`evaluation` is not set"
            raise UserError(f"keep_best.metric: {best.metric!r} is not logged; {there}")

    def launch(self, stage: Stage) -> None:
        """Start the scorers."""
        if self.evaluation:
            self.scorers = stage.launch("evaluation.scorer", ScorerActor, self.config, self.benchmark, self.layout)

    def due(self, step: int) -> bool:
        """Whether an evaluation follows the step."""
        return self.evaluation is not None and (step % self.evaluation.every == 0 or step == self.steps)

    def __call__(self, step: int, drawing: Drawing) -> dict[str, float]:
        """Evaluate the weights of `step`, with which `drawing` draws."""
        start, name = monotonic(), f"step-{step:06d}"
        folders = {"policy": self.run / "checkpoints" / name / "model", "output": self.run / "evaluations" / name}
        config = self.config.model_copy(update=folders)
        open_folder(config, self.benchmark)
        draw_and_judge(config, self.benchmark, unfinished(config, self.benchmark), drawing, self.scorers)
        scores = write_results(config, self.benchmark)["scores"]
        metrics = {f"evaluation_{name}": score for name, score in scores.items()}
        return metrics | {"evaluation_seconds": monotonic() - start}


def _evaluate_config(config: StageConfig, evaluation: EvaluationConfig, engine: EngineConfig) -> EvaluateConfig:
    """The configuration with which `python -m simplear_rl.evaluate` would do the same."""
    benchmark = {key: getattr(evaluation, key) for key in BenchmarkConfig.model_fields}
    command = {key: getattr(config, key) for key in CommandConfig.model_fields}
    folders = {"policy": config.start, "output": config.run / "evaluations"}
    alone = engine.model_copy(update={"actors": PoolConfig()})  # the run's actors draw, however many
    return EvaluateConfig(**benchmark, **command, **folders, engine=alone)
