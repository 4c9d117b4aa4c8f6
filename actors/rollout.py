"""Rollout actors: vLLM engines that draw images for prompts."""

from collections.abc import Iterator
from pathlib import Path

import ray
from ray.actor import ActorHandle

from actors.broadcast import GroupMember
from actors.monitor import Monitored
from simplear_rl.config import EngineConfig
from simplear_rl.learning.weights import Weights
from simplear_rl.rollout.sampling import Sampling
from simplear_rl.rollout.types import Prompt, Rollout


@ray.remote
class RolloutActor(Monitored, GroupMember):
    """A RolloutEngine in an actor of its own."""

    def __init__(self, name: str, index: int, policy: Path, config: EngineConfig):
        super().__init__(name, ("decode", "load weights"))
        from simplear_rl.rollout.engine import RolloutEngine

        with self.building():
            self.engine = RolloutEngine(policy, config)

    @ray.method(num_returns="streaming")
    def generate(
        self, step: int, prompts: list[Prompt], samples: int, seed: int, sampling: Sampling
    ) -> Iterator[Rollout]:
        """Stream one Rollout per prompt, in order, each as soon as its group is complete."""
        with self.phase("decode", step, images=len(prompts) * samples):
            yield from self.engine.generate(prompts, samples, (seed, step), sampling)

    def load_weights(self, weights: Weights) -> int:
        """Load a broadcast and verify it, see RolloutEngine.load_weights; returns the version."""
        with self.phase("load weights", weights.version, images=0):
            self.engine.load_weights(weights)
        return self.engine.version

    def receive_weights(self) -> int:
        """Take part in the group's broadcast, see RolloutEngine.receive_weights; returns the version."""
        with self.phase("load weights", self.engine.version + 1, images=0), self.transfer() as group:
            self.engine.receive_weights(group)
        return self.engine.version


def stream(
    engines: list[ActorHandle], step: int, prompts: list[Prompt], samples: int, seed: int, sampling: Sampling
) -> Iterator[tuple[int, ray.ObjectRef]]:
    """Share the prompts out over the engines; yield (prompt index, reference to its Rollout) as groups complete."""
    shares = [prompts[i :: len(engines)] for i in range(len(engines))]
    streams = {
        engine.generate.remote(step, share, samples, seed, sampling): iter(share)
        for engine, share in zip(engines, shares, strict=True)
    }
    while streams:
        (ready,), _ = ray.wait(list(streams), num_returns=1, fetch_local=False)
        try:
            reference = next(ready)
        except StopIteration:
            del streams[ready]
            continue
        yield next(streams[ready]).index, reference
