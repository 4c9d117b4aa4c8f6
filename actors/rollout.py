"""Rollout actors: engines that draw images for prompts."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.monitor import CONCURRENCY_GROUPS, Monitored
from actors.pool import Pool
from actors.supervision import LOST
from actors.weight_member import WeightMember
from simplear_rl.config.rollout import EngineConfig
from simplear_rl.policy.rollouts import Draw, Prompt, Rollout
from simplear_rl.weights.snapshot import Weights


@ray.remote(max_task_retries=-1, concurrency_groups=CONCURRENCY_GROUPS)
class RolloutActor(Monitored, WeightMember):
    """An engine in an actor of its own. A restarted one holds the weights of the policy folder, version 0."""

    def __init__(self, name: str, index: int, policy: Path, config: EngineConfig):
        super().__init__(name, ("decode", "load weights"))
        from simplear_rl.rollout.engine import build_engine

        self.dtype = config.dtype
        with self.building():
            self.engine: Any = build_engine(policy, config)

    @ray.method(num_returns="streaming", max_task_retries=0)  # `stream` asks again, for the rest
    def generate(self, draw: Draw, version: int, weights: Weights | Path | None) -> Iterator[Rollout]:
        """Stream one Rollout per prompt, in order, each as soon as its group is complete.

        All are drawn with the weights of `version`, loaded first from `weights`, or from a policy folder, if given. An
        engine that was restarted since they were broadcast, and is not given them, yields nothing.
        """
        if isinstance(weights, Path):
            from simplear_rl.weights.folder import read_weights

            weights = read_weights(weights, version, self.dtype)
        if weights:
            self.load_weights(weights)
        elif version != self.engine.version:
            return
        with self.phase("decode", draw.step, images=len(draw.prompts) * draw.samples):
            yield from self.engine.generate(draw)

    def load_weights(self, weights: Weights) -> int:
        """Load a broadcast and verify it, see WeightReceiver; returns the version."""
        with self.phase("load weights", weights.version, images=0):
            self.engine.load_weights(weights)
        return self.engine.version

    @ray.method(max_task_retries=0)  # a transfer cannot be repeated by one member alone
    def receive_weights(self) -> int:
        """Take part in the group's broadcast, see WeightReceiver; returns the version."""
        with self.phase("load weights", self.engine.version + 1, images=0), self.weight_transfer() as group:
            self.engine.receive_weights(group)
        return self.engine.version

    @ray.method(max_task_retries=0)
    def map_weights(self, handles: bytes) -> None:
        """Copy a bucket that a learner on this device shows, see WeightReceiver."""
        self.engine.map_weights(handles)

    @ray.method(max_task_retries=0)
    def accept_weights(self, version: int, checksum: dict[str, str]) -> int:
        """Verify what has been copied, see WeightReceiver; returns the version."""
        with self.phase("load weights", version, images=0):
            self.engine.accept_weights(version, checksum)
        return self.engine.version


def stream(
    engines: Pool,
    draw: Draw,
    contexts: int,
    version: int = 0,
    weights: Callable[[], ray.ObjectRef] | Path | None = None,
) -> Iterator[tuple[int, ray.ObjectRef]]:
    """Share the prompts out over the engines; yield (prompt index, reference to its Rollout) as groups complete.

    An engine is given as many prompts as it draws at a time, and further ones when these are complete. When it dies,
    Ray restarts it and it draws all of them again: the last digits of log-probs depend on what is drawn together. If it
    is an extra one (see Pool), others draw what it still owes. The samples are the same in any case, since they depend
    on seed, step, indices and weights alone (see Draw).

    All draw with the weights of `version`, 0 for those of the policy folder. For an engine that does not hold them, for
    example since it was restarted or has just joined, `weights` fetches them, or is the policy folder that has them.

    `contexts` is how many an engine decodes at a time.

    Raises:
        ActorDiedError: an engine has used up its restarts, see Stage.launch.
    """
    most = draw.prompts_at_once(contexts)
    waiting = deque(_batches(draw.prompts, len(engines.up()), most))
    streams: dict[ray.ObjectRefGenerator, tuple[ActorHandle, Sequence[Prompt], int]] = {}  # with how many it has drawn
    taken: set[int] = set()

    def give(engine: ActorHandle, batch: Sequence[Prompt], held: ray.ObjectRef | Path | None = None) -> None:
        streams[engine.generate.remote(replace(draw, prompts=batch), version, held)] = engine, batch, 0

    def source() -> ray.ObjectRef | Path | None:
        return weights() if callable(weights) else weights

    while waiting or streams:
        busy = [engine for engine, *_ in streams.values()]
        for engine in engines.up():
            if waiting and engine not in busy:
                give(engine, waiting.popleft())
        (ready,), _ = ray.wait(list(streams), num_returns=1, fetch_local=False)
        engine, batch, drawn = streams.pop(ready)
        try:
            reference = next(ready, None)
            if reference == ready.completed():
                reference = None
            if reference and engines.is_extra(engine):
                ray.get(reference)  # so that a copy outlives the engine's node
            elif not reference:
                ray.get(ready.completed())
        except LOST as error:
            by = engines.instead_of(engine, error)
            if by == [engine]:
                give(engine, batch, source())
            else:
                owed = [prompt for prompt in batch if prompt.index not in taken]
                waiting.extend(_batches(owed, len(by), most))
            continue
        if reference:
            streams[ready] = engine, batch, drawn + 1
            if (index := batch[drawn].index) not in taken:
                taken.add(index)
                yield index, reference
        elif not drawn:  # it does not hold the weights
            give(engine, batch, source())


def _batches(prompts: Sequence[Prompt], engines: int, most: int) -> list[Sequence[Prompt]]:
    """As few batches as the engines can share, of `most` prompts at most, and of equal sizes or nearly."""
    count = min(len(prompts), max(engines, ceil(len(prompts) / most)))
    return [prompts[i::count] for i in range(count)]
