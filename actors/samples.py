"""The samples of each step and the weights that draw them: at once, or while the learner takes the step before."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import ray

from actors.broadcast import Broadcast
from actors.learner import LearnerGroup
from actors.sampler import Drawn, Group, Sampler
from simplear_rl.config.dpo import DpoConfig
from simplear_rl.config.stages import GrpoConfig
from simplear_rl.data.prompts import PromptRow, further_prompts, prompts_of_step
from simplear_rl.policy.rollouts import Draw
from simplear_rl.policy.sampling import Sampling
from simplear_rl.run.checkpoints import BEHIND, step_of
from simplear_rl.weights.snapshot import Weights


@ray.remote(num_cpus=0)
def _read_weights(folder: Path, version: int, dtype: str) -> Weights:
    """In a process of its own: Transformers' models take seconds to import."""
    from simplear_rl.weights.folder import read_weights

    return read_weights(folder, version, dtype)


class Samples:
    """What GRPO learns from, or DPO of its own images, step by step.

    With `rollout.ahead` = 0 a step is drawn when it is asked for, with the weights of the step before. With 1 the next
    step is drawn meanwhile, by a thread that waits for the engines, so with weights that are one step older. Weights
    change only while nothing is drawn. One step is enough: images of equal length take equally long, and the longer of
    drawing and learning sets the pace (docs/decisions.md).

    Args:
        config: of the stage.
        prompts: all of them.
        sampler: draws.
        broadcast: gives the engines the learner's weights.
        learner: whose weights they are.
        reference: policy folder of the reference of a step.
    """

    def __init__(
        self,
        config: GrpoConfig | DpoConfig,
        prompts: list[PromptRow],
        sampler: Sampler,
        broadcast: Broadcast,
        learner: LearnerGroup,
        reference: Callable[[int], Path],
    ):
        assert config.rollout
        self.config, self.prompts, self.rollout, self.ahead = config, prompts, config.rollout, config.rollout.ahead
        self.sampler, self.broadcast, self.learner, self.reference = sampler, broadcast, learner, reference
        self.thread = ThreadPoolExecutor(1, "samples")
        self.next: Future[tuple[Drawn, dict[str, float]]] | None = None
        self.version = 0  # of the weights that the engines hold
        # With `ahead`: these weights, for an engine that Ray restarts, and those that the samples of the next step are
        # drawn with, for a checkpoint.
        self.held: ray.ObjectRef | None = None
        self.behind: ray.ObjectRef | None = None

    def begin(self, checkpoint: Path | None) -> None:
        """Give the engines their weights; after a checkpoint, draw again what was being drawn when it was written."""
        if checkpoint:
            self.learner.load(checkpoint)
            if self.ahead and (checkpoint / BEHIND).exists():
                step = step_of(checkpoint)
                self.held = _read_weights.remote(checkpoint / BEHIND, step - 1, self.config.learner.dtype)
                self.version = int(self.broadcast.restore(self.held)["weight_version"])
                self.next = self._start(step + 1)
        self.renew()

    def __call__(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """The groups of a step; `rollout_seconds` is for how long they were waited for."""
        start = monotonic()
        drawn, metrics = (self.next or self._start(step)).result()
        if self.ahead:
            metrics |= {"drawing_seconds": metrics["rollout_seconds"], "rollout_seconds": monotonic() - start}
            self.next = self._start(step + 1) if step < self.config.steps else None
        return self.sampler.settled(drawn), metrics

    def renew(self) -> dict[str, float]:
        """Give the engines the learner's weights, once what is being drawn is drawn; see Broadcast."""
        start = monotonic()
        fetched = self.learner.weights() if self.ahead else None
        if self.next:
            self.next.result()
        waited = monotonic() - start
        metrics = self.broadcast(fetched)
        self.behind, self.held = self.held, fetched
        self.version = int(metrics["weight_version"])
        return metrics | ({"drawing_wait_seconds": waited} if self.ahead else {})

    def _start(self, step: int) -> Future[tuple[Drawn, dict[str, float]]]:
        rollout, seed = self.rollout, self.config.seed
        batch = prompts_of_step(self.prompts, step, rollout.prompts_per_step, seed)
        sampling = Sampling(temperature=rollout.temperature, guidance_scale=rollout.guidance_scale)
        draw = Draw(batch, rollout.samples_per_prompt, seed, step, sampling)
        further, frozen, held = further_prompts(self.prompts, draw), self.reference(step), self.held
        weights = (lambda: held) if held else self.learner.weights
        return self.thread.submit(self.sampler.draw, draw, further, frozen, self.version, weights)
