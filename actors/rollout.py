"""Rollout actors: engines that draw images for prompts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError

from actors.monitor import CONCURRENCY_GROUPS, Monitored
from actors.pool import Pool
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

        with self.building():
            self.engine: Any = build_engine(policy, config)

    @ray.method(num_returns="streaming", max_task_retries=0)  # `stream` asks again, for the rest
    def generate(self, draw: Draw, version: int, weights: Weights | None) -> Iterator[Rollout]:
        """Stream one Rollout per prompt, in order, each as soon as its group is complete.

        All are drawn with the weights of `version`, loaded first from `weights` if given. An engine that was restarted
        since they were broadcast, and is not given them, yields nothing.
        """
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
    engines: Pool, draw: Draw, version: int = 0, weights: Callable[[], ray.ObjectRef] | None = None
) -> Iterator[tuple[int, ray.ObjectRef]]:
    """Share the prompts out over the engines; yield (prompt index, reference to its Rollout) as groups complete.

    When an engine dies, Ray restarts it and it draws what it still owes; if it is an extra one (see Pool), the others
    do at once. The samples are the same, since they depend on seed, step, indices and weights alone (see Draw).

    All draw with the weights of `version`, 0 for those of the policy folder; `weights` fetches them for an engine that
    was restarted or has just joined.

    Raises:
        ActorDiedError: an engine has used up its restarts, see Stage.launch.
    """
    streams: dict[ray.ObjectRefGenerator, tuple[ActorHandle, list[Prompt], int]] = {}

    def share_out(by: list[ActorHandle], owed: Sequence[Prompt], source: ray.ObjectRef | None = None) -> None:
        for i, engine in enumerate(by[: len(owed)]):
            share = list(owed[i :: len(by)])
            call = engine.generate.remote(replace(draw, prompts=share), version, source)
            streams[call] = engine, share, len(share)

    share_out(engines.up(), draw.prompts)
    while streams:
        (ready,), _ = ray.wait(list(streams), num_returns=1, fetch_local=False)
        engine, share, asked = streams[ready]
        by: list[ActorHandle] = []
        try:
            reference = next(ready, None)
            if reference == ready.completed():
                reference = None
            if reference and engines.is_extra(engine):
                ray.get(reference)  # so that a copy outlives the engine's node
            elif not reference:
                ray.get(ready.completed())
                by = [engine] if len(share) == asked else []
        except (RayActorError, ObjectLostError) as error:
            reference, by = None, engines.instead_of(engine, error)
        if reference:
            yield share.pop(0).index, reference
            continue
        del streams[ready]
        if share and by:
            share_out(by, share, weights() if weights and engine in by else None)
