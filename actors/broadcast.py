"""Weight broadcast from the learner to every engine: through Ray's object store, a process group or shared memory."""

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Literal

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayError

from actors.learner import LearnerGroup
from actors.pool import Pool
from actors.supervision import gather
from simplear_rl.errors import causes


class Broadcast:
    """Call it after each update: every engine then holds the learner's weights and has verified their checksum.

    `object_store` copies the weights to the host and through Ray's store: works wherever Ray does. `collective` sends
    over a process group of learner rank 0 and all engines. The group is formed before the first transfer and again
    whenever its members change. `ipc` needs an engine beside every learner rank (`colocated`, see Stage): each rank
    shows its weights to the engine on its device. If an engine dies during a transfer, the transfer is repeated: with
    the engine once Ray has restarted it, or without it if it was an extra one.

    Raises:
        ActorDiedError: an actor is dead for good.
        RayTaskError: an engine or the learner failed; with the type and the message of its error.
        RuntimeError: some did not answer in time; says which.
    """

    def __init__(
        self,
        transport: Literal["object_store", "collective", "ipc"],
        learner: LearnerGroup,
        engines: Pool,
    ):
        self.transport, self.learner, self.pool, self.engines = transport, learner, engines, engines.fixed
        self.members: list[ActorHandle] = []  # of the process group

    def __call__(self, fetched: ray.ObjectRef | None = None) -> dict[str, float]:
        """Returns the version that the engines hold, their number, and the seconds that it took.

        `fetched`: the learner's weights, where they are in the store already.
        """
        transports: dict[str, Callable[[], list[int]]] = {
            "object_store": partial(self._object_store, fetched),
            "collective": self._collective,
            "ipc": self._ipc,
        }
        return self._verified(transports[self.transport])

    def restore(self, weights: ray.ObjectRef) -> dict[str, float]:
        """The same with other weights than the learner's, through Ray's store."""
        return self._verified(partial(self._object_store, weights))

    def _verified(self, send: Callable[[], list[int]]) -> dict[str, float]:
        start = monotonic()
        while True:
            try:
                self.engines = self.pool.up()
                # One that Ray restarts is waited for, as long as its node takes; a transfer has its time.
                ray.get([engine.ready.remote() for engine in self.engines])
                versions = send()
                break
            except RayError as error:
                # Ray restarts the engine, and it takes part in the next attempt. A learner that called it wraps that.
                restarted = any(isinstance(cause, ActorUnavailableError) for cause in causes(error))
                if not self.pool.replace_lost(error) and not restarted:
                    raise
        return {
            "weight_version": float(min(versions)),
            "engines_verified": float(len(versions)),
            "broadcast_seconds": monotonic() - start,
        }

    def _object_store(self, fetched: ray.ObjectRef | None) -> list[int]:
        weights = fetched or self.learner.weights()
        return gather(self._of_engines([engine.load_weights.remote(weights) for engine in self.engines]))

    def _collective(self) -> list[int]:
        first, *others = self.learner.ranks
        members = [first, *self.engines]
        if members != self.members or not all(ray.get([member.in_group.remote() for member in members])):
            rendezvous = ray.get(first.rendezvous.remote())
            joining = [member.join_group.remote(rendezvous, i, len(members)) for i, member in enumerate(members)]
            gather({"learner-0": joining[0]} | self._of_engines(joining[1:]))
            self.members = members
        sending = {f"learner-{i}": rank.send_weights.remote() for i, rank in enumerate((first, *others))}
        receiving = self._of_engines([engine.receive_weights.remote() for engine in self.engines])
        return gather(sending | receiving)[len(sending) :]

    def _ipc(self) -> list[int]:
        pairs = zip(self.learner.ranks, self.engines, strict=True)
        return gather({f"learner-{i}": rank.share_weights.remote(engine) for i, (rank, engine) in enumerate(pairs)})

    @staticmethod
    def _of_engines(calls: list[ray.ObjectRef]) -> dict[str, ray.ObjectRef]:
        return {f"rollout.engine-{i}": call for i, call in enumerate(calls)}
