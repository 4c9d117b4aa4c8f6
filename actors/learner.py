"""Learner actors: the ranks of one DeepSpeed group, and the handle that drives them as one."""

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from actors.monitor import CONCURRENCY_GROUPS, Monitored
from actors.placement import Stage
from actors.supervision import raise_cause
from actors.weight_member import WeightMember
from simplear_rl.config.data import TokenDataConfig
from simplear_rl.config.learner import AlgorithmConfig, LearnerConfig
from simplear_rl.weights.snapshot import Weights


@ray.remote(concurrency_groups=CONCURRENCY_GROUPS | {"checkpoint": 1})
class LearnerActor(Monitored, WeightMember):
    """One rank of the Learner. The three stages use the same class."""

    def __init__(self, name: str, rank: int):
        super().__init__(name, ("train", "update", "broadcast", "sample", "save"))
        self.rank = rank

    def rendezvous(self) -> str:
        """An address on this actor's node where the ranks can meet."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def start(
        self, rendezvous: str, config: LearnerConfig, start: Path, steps: int, micro_batches: int, run: Path
    ) -> None:
        """Load the policy and join the other ranks."""
        from simplear_rl.learning.learner import Learner

        self.learner = Learner(config, start, steps, micro_batches, self.rank, config.actors.count, rendezvous, run)

    def open_data(self, config: TokenDataConfig, seed: int) -> None:
        """Open the token shards."""
        from simplear_rl.data.batches import Prefetcher, TokenDataset

        learner = self.learner
        data = TokenDataset(config, learner.encode, learner.layout, seed, self.rank, learner.ranks)
        self.batch = Prefetcher(data.batch)

    def train(self, step: int) -> dict[str, float]:
        """One supervised step on this rank's share of the batch of `step` (from 1)."""
        from simplear_rl.learning.flops import throughput

        start = time.monotonic()
        batch = self.batch(step)
        with self.phase("train", step, images=len(batch.ids)):
            metrics = self.learner.train_tokens(batch)
        seconds = time.monotonic() - start
        metrics |= throughput(self.learner.size, batch.target_lengths, seconds, self.learner.peak_flops)
        return metrics | {"truncated": float(batch.truncated)}

    def update(
        self, step: int, groups: Sequence[tuple[ray.ObjectRef, ...]], config: AlgorithmConfig
    ) -> dict[str, float]:
        """One GRPO batch; each of this rank's `groups` refers to a rollout, its rewards and its reference log-probs."""
        from simplear_rl.policy.rollouts import ScoredRollout

        scored = [
            ScoredRollout(rollout, rewards["total"], reference)
            for rollout, rewards, reference in (ray.get(list(group)) for group in groups)
        ]
        with self.phase("update", step, images=sum(len(s.rewards) for s in scored)):
            return self.learner.update(scored, config)

    def weights(self) -> Weights | None:
        """Rank 0: the whole policy, to broadcast."""
        with self.phase("broadcast", self.learner.step, images=0):
            return self.learner.weights()

    def send_weights(self) -> None:
        """Rank 0: broadcast the policy over the group; the others take part in the gathering."""
        with self.phase("broadcast", self.learner.step, images=0):
            if self.rank:
                self.learner.send_weights(None)
                return
            with self.weight_transfer() as group:
                self.learner.send_weights(group)

    def share_weights(self, engine: ActorHandle) -> int:
        """Let an engine on this device copy the policy; returns the version that it has verified."""
        with self.phase("broadcast", self.learner.step, images=0):
            sums = self.learner.share_weights(lambda handles: ray.get(engine.map_weights.remote(handles)))
            return ray.get(engine.accept_weights.remote(self.learner.step, sums))

    def sample(self, captions: list[str], images: int, seed: int) -> np.ndarray:
        """See Learner.sample."""
        with self.phase("sample", self.learner.step, images=len(captions) * images):
            return self.learner.sample(captions, images, seed)

    def save(self, folder: Path) -> None:
        """Copy this rank's part of a checkpoint to host memory."""
        with self.phase("save", self.learner.step, images=0):
            self.write = self.learner.save(folder)

    @ray.method(concurrency_group="checkpoint")
    def write_saved(self) -> None:
        """Write the copy, while this rank does other things."""
        self.write()
        del self.write

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        self.learner.load(folder)


class LearnerGroup:
    """All ranks, driven as one learner. A rank is not restarted alone: the stage goes on from its last checkpoint."""

    def __init__(self, stage: Stage, config: LearnerConfig, start: Path, steps: int, micro_batches: int, run: Path):
        self.ranks: list[ActorHandle] = stage.launch("learner.actors", LearnerActor, max_restarts=0)
        rendezvous = ray.get(self.ranks[0].rendezvous.remote())
        self._all("start", rendezvous, config, start, steps, micro_batches, run)

    def open_data(self, config: TokenDataConfig, seed: int) -> None:
        """Open the token shards on every rank."""
        self._all("open_data", config, seed)

    def train(self, step: int) -> dict[str, float]:
        """One supervised step; what is a rank's share is summed, its `mfu` averaged."""
        shares = self._all("train", step)
        metrics = shares[0] | {
            name: sum(share[name] for share in shares) for name in ("loss", "tokens_per_second", "truncated")
        }
        if "mfu" in metrics:
            metrics["mfu"] = sum(share["mfu"] for share in shares) / len(shares)
        return metrics

    def update(
        self, step: int, groups: Sequence[tuple[ray.ObjectRef, ...]], config: AlgorithmConfig
    ) -> dict[str, float]:
        """One GRPO batch; groups are dealt out to the ranks in turn."""
        ranks = len(self.ranks)
        shares = _together([actor.update.remote(step, groups[i::ranks], config) for i, actor in enumerate(self.ranks)])
        extremes = {"_min": np.min, "_max": np.max}
        return {name: float(extremes.get(name[-4:], np.mean)([s[name] for s in shares])) for name in shares[0]}

    def weights(self) -> ray.ObjectRef:
        """Reference to the current Weights, held in the object store."""
        references = [actor.weights.remote() for actor in self.ranks]  # every rank takes part in the gathering
        return references[0]

    def sample(self, captions: list[str], images: int, seed: int) -> np.ndarray:
        """Draw `images` per caption from the current weights; codes [captions, images, T]."""
        return self._all("sample", captions, images, seed)[0]

    def save(self, folder: Path) -> Callable[[], None]:
        """Copy the state of every rank to host memory; what it returns writes it to `folder`, in any thread."""
        self._all("save", folder)
        return self._write_saved

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        self._all("load", folder)

    def _write_saved(self) -> None:
        calls = [actor.write_saved.remote() for actor in self.ranks]
        ray.wait(calls, num_returns=len(calls))  # once one has failed, no other goes on writing
        _together(calls)

    def _all(self, method: str, *args: Any) -> list[Any]:
        return _together([getattr(actor, method).remote(*args) for actor in self.ranks])


def _together(calls: list[ray.ObjectRef]) -> list[Any]:
    """What the ranks return."""
    try:
        return ray.get(calls)
    except RayTaskError as error:
        raise_cause(error, calls)
