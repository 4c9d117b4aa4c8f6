"""Learner actors: the ranks of one DeepSpeed group, and the handle that drives them as one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from actors.monitor import CONCURRENCY_GROUPS, Monitored
from actors.placement import Stage
from actors.sampler import Group
from actors.supervision import gather, raise_cause
from actors.weight_member import WeightMember
from simplear_rl.config.learner import LearnerConfig
from simplear_rl.learning.metrics import combined
from simplear_rl.learning.objective import Objective
from simplear_rl.policy.rollouts import Draw, Prompt, Rollout, ScoredRollout
from simplear_rl.policy.sampling import Sampling
from simplear_rl.rewards.metrics import learned_alone, learned_rewards
from simplear_rl.weights.group import meeting_place
from simplear_rl.weights.snapshot import Weights


@ray.remote(concurrency_groups=CONCURRENCY_GROUPS | {"checkpoint": 1})
class LearnerActor(Monitored, WeightMember):
    """One rank of the Learner. All training stages use the same class."""

    def __init__(self, name: str, rank: int):
        super().__init__(name, ("train", "broadcast", "sample", "save"))
        self.rank = rank
        # Here, and not for the arguments of `start`: while Ray reads those, the actor owes its heartbeat.
        from simplear_rl.learning.learner import Learner

        self.build = Learner

    def rendezvous(self) -> str:
        """An address on this actor's node where the ranks of a group meet, of which this actor becomes rank 0."""
        self.store = meeting_place(ray.util.get_node_ip_address())
        return f"tcp://{self.store.host}:{self.store.port}"

    def start(
        self,
        rendezvous: str,
        config: LearnerConfig,
        start: Path,
        steps: int,
        micro_batches: int,
        run: Path,
        objective: Callable[[Any], Objective],
        tokenizer: str | None,
    ) -> None:
        """Load the policy and join the other ranks."""
        self.ranks = config.actors.count
        self.learner = self.build(
            config, start, steps, micro_batches, self.rank, config.actors.count, rendezvous, run, tokenizer
        )
        self.objective = objective(self.learner)

    def step(self, step: int, groups: Sequence[Group]) -> dict[str, float]:
        """One step of the objective on this rank's share of the groups, see Objective."""
        share = Share(groups, self.rank, self.ranks)
        with self.phase("train", step, self.objective.images(share)):
            metrics = self.objective.step(step, share)
        return metrics | ({"scoring_seconds": share.waited} if groups else {})

    @ray.method(num_returns=2)
    def weights(self) -> tuple[Weights | None, None]:
        """Rank 0: the whole policy, to broadcast; and nothing, by which the driver sees that it is there."""
        with self.phase("broadcast", self.learner.step, images=0):
            return self.learner.weights(), None

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

    @ray.method(num_returns="streaming")
    def draw(self, draw: Draw) -> Iterator[Rollout]:
        """See Learner.draw."""
        with self.phase("sample", self.learner.step, images=len(draw.prompts) * draw.samples):
            for rollout in self.learner.draw(draw):  # noqa: UP028, Ray sends into the generator and a list has no `send`
                yield rollout

    def save(self, folder: Path, behind: Weights | None) -> None:
        """Copy this rank's part of a checkpoint to host memory."""
        with self.phase("save", self.learner.step, images=0):
            self.write = self.learner.save(folder, behind)

    @ray.method(concurrency_group="checkpoint")
    def write_saved(self) -> None:
        """Write the copy, while this rank does other things."""
        self.write()
        del self.write

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        self.learner.load(folder)


class Share(Sequence[ScoredRollout]):
    """The groups of a rank, each fetched when it is first asked for: what is not scored yet holds up none before it.

    `waited` is the seconds that this took.

    Raises:
        UserError: with the last group: all groups of the step are left out.
    """

    def __init__(self, groups: Sequence[Group], rank: int, ranks: int):
        self.groups, self.rank, self.ranks = groups, rank, ranks
        self.fetched: dict[int, ScoredRollout] = {}
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self.groups[self.rank :: self.ranks])

    def __getitem__(self, i: Any) -> Any:
        if i not in self.fetched:
            start, place = monotonic(), range(self.rank, len(self.groups), self.ranks)[i]
            group = self.groups[place]
            rewards = learned_alone(ray.get(group.rewards))
            if rewards is None or i == len(self) - 1:
                rewards = learned_rewards(ray.get([group.rewards for group in self.groups]))[place]
            rollout, compared = ray.get(group.rollout), group.reference_log_probs
            self.fetched[i] = ScoredRollout(rollout, rewards, compared and ray.get(compared)[group.place])
            self.waited += monotonic() - start
        return self.fetched[i]


class LearnerGroup:
    """All ranks, driven as one learner. A rank is not restarted alone: the stage goes on from its last checkpoint.

    Args:
        stage: that the ranks are actors of.
        config: the learner's.
        start: policy folder to begin from.
        steps: optimizer steps of the whole run.
        micro_batches: forward passes of each rank per optimizer step.
        run: folder of the run.
        objective: makes what the stage optimises, given a rank's Learner.
        tokenizer: identity of the visual tokenizer, which saved policies remember.
    """

    def __init__(
        self,
        stage: Stage,
        config: LearnerConfig,
        start: Path,
        steps: int,
        micro_batches: int,
        run: Path,
        objective: Callable[[Any], Objective],
        tokenizer: str | None = None,
    ):
        self.ranks: list[ActorHandle] = stage.launch("learner.actors", LearnerActor, max_restarts=0)
        stage.require_workers()
        rendezvous = ray.get(self.ranks[0].rendezvous.remote())
        self._all("start", rendezvous, config, start, steps, micro_batches, run, objective, tokenizer)

    def step(self, step: int, groups: Sequence[Group] = ()) -> dict[str, float]:
        """Step `step` (from 1); the groups drawn for it are dealt out to the ranks in turn.

        `update_seconds` is without those of scoring and validation.
        """
        start = monotonic()
        shares = [actor.step.remote(step, groups) for actor in self.ranks]
        metrics = combined(_together(shares))
        others = sum(metrics.get(f"{phase}_seconds", 0.0) for phase in ("scoring", "validation"))
        return metrics | {"update_seconds": monotonic() - start - others}

    def weights(self) -> ray.ObjectRef:
        """Reference to the current Weights, held in the object store.

        Every rank takes part in the gathering. When one fails the others, which may wait for it, are not waited for.
        """
        references, gathered = zip(*(actor.weights.remote() for actor in self.ranks), strict=True)
        gather({f"learner-{rank}": call for rank, call in enumerate(gathered)})
        return references[0]

    def draw(self, draw: Draw, contexts: int) -> Iterator[tuple[int, ray.ObjectRef]]:
        """As engines do, with the weights as they are: yields (prompt index, reference to its Rollout).

        The ranks share the prompts. `contexts` is how many each decodes at a time, a prompt's images at the least.
        """
        at_once = draw.prompts_at_once(contexts) * len(self.ranks)
        for first in range(0, len(draw.prompts), at_once):
            batch = draw.prompts[first : first + at_once]
            shares = [batch[rank :: len(self.ranks)] for rank in range(len(self.ranks))]
            streams = [  # every rank takes part, if there is nothing left for it with a prompt of another one
                actor.draw.remote(replace(draw, prompts=share or batch[:1]))
                for actor, share in zip(self.ranks, shares, strict=True)
            ]
            _together([stream.completed() for stream in streams])
            for share, stream in zip(shares, streams, strict=True):
                yield from ((prompt.index, rollout) for prompt, rollout in zip(share, stream, strict=False))

    def sample(self, captions: list[str], images: int, seed: int, step: int) -> list[np.ndarray]:
        """Draw `images` per caption at temperature 1, unguided and all at once; codes [images, T] of each."""
        prompts = [Prompt(i, caption) for i, caption in enumerate(captions)]
        drawn = dict(self.draw(Draw(prompts, images, seed, step, Sampling()), contexts=images * len(captions)))
        return [ray.get(drawn[prompt.index]).codes for prompt in prompts]

    def save(self, folder: Path, behind: ray.ObjectRef | None = None) -> Callable[[], None]:
        """Copy the state of every rank to host memory; what it returns writes it to `folder`, in any thread.

        `behind`: Weights that rank 0 adds, see Learner.save.
        """
        _together([actor.save.remote(folder, None if i else behind) for i, actor in enumerate(self.ranks)])
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
