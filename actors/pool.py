"""Pools: actors of one role, each of which can do any piece of its work, and of which more may join a running stage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayError

from actors.supervision import ACTOR_LOST, LOST, is_behind
from simplear_rl.errors import causes
from simplear_rl.run.events import say


@dataclass
class Call:
    """A call of one of the pool's actors."""

    actor: ActorHandle
    method: str
    args: tuple[Any, ...]
    reference: ray.ObjectRef


@dataclass
class Extra:
    """An actor that joins once the cluster has room for it."""

    name: str
    actor: ActorHandle
    built: ray.ObjectRef
    joined: bool = False


class Pool:
    """Actors of one role.

    Fixed actors are always there: Ray restarts one that dies and calls wait for it. Extra actors may join and leave:
    if one dies, alone or with its node, its calls go to the others and a replacement is requested. Several threads may
    use a pool.

    Args:
        fixed: the fixed actors, already started.
        extra: functions by name; each starts an extra actor, which Ray does not restart.
    """

    def __init__(self, fixed: Sequence[ActorHandle], extra: Mapping[str, Callable[[], ActorHandle]] | None = None):
        self.fixed, self.starters = list(fixed), dict(extra or {})
        self.extra = [self._ask_for(name) for name in self.starters]
        self.gone: set[str] = set()  # identifiers of extra actors
        self.changing = RLock()
        self.turn = 0

    def _ask_for(self, name: str) -> Extra:
        actor = self.starters[name]()
        return Extra(name, actor, actor.ready.remote())

    def up(self) -> list[ActorHandle]:
        """The actors to give work to now.

        Raises:
            UserError: an extra one found that it cannot be built.
            ActorDiedError: it failed to.
        """
        with self.changing:
            for extra in self.extra:
                if not extra.joined and ray.wait([extra.built], timeout=0)[0]:
                    try:
                        ray.get(extra.built)
                    except ACTOR_LOST as error:
                        cannot_be_built = isinstance(error, RayActorError) and error.actor_init_failed
                        if cannot_be_built or not self.replace_lost(error):
                            raise
                    else:
                        extra.joined = True
                        say(f"{extra.name} has joined")
            return self.fixed + [extra.actor for extra in self.extra if extra.joined]

    def is_extra(self, actor: ActorHandle) -> bool:
        """Whether it is not one of the fixed actors."""
        return actor not in self.fixed

    def replace_lost(self, error: RayError) -> bool:
        """Whether an extra actor that is gone is behind the error. Another one is then asked for."""
        lost = {cause.actor_id for cause in causes(error) if isinstance(cause, RayActorError)}
        with self.changing:
            for i, extra in enumerate(self.extra):
                if is_behind(extra.actor, error):
                    say(f"{extra.name} is gone, others do its work: {error}")
                    lost.add(extra.actor._actor_id.hex())
                    self.gone.add(extra.actor._actor_id.hex())
                    ray.kill(extra.actor)  # if it is out of reach only
                    self.extra[i] = self._ask_for(extra.name)
            return not lost.isdisjoint(self.gone)

    def instead_of(self, actor: ActorHandle, error: RayError) -> list[ActorHandle]:
        """Who does what `actor` owes after an error: itself, if Ray restarts it, or all others, if it was an extra one.

        Raises the error if there is another reason for it.
        """
        if self.is_extra(actor) and (self.replace_lost(error) or isinstance(error, ObjectLostError)):
            return self.up()
        if isinstance(error, ActorUnavailableError):
            return [actor]
        raise error

    def call(self, method: str, *args: Any) -> Call:
        """Call a method of the actor whose turn it is."""
        up = self.up()
        actor = up[self.turn % len(up)]
        self.turn += 1
        return Call(actor, method, args, getattr(actor, method).remote(*args))

    def settled(self, calls: Sequence[Call]) -> list[ray.ObjectRef]:
        """References to what the calls return, in order. Those of extra actors are waited for.

        A call of an extra actor that is gone is made again.
        """
        waiting = {call.reference: call for call in calls if self.is_extra(call.actor)}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1, fetch_local=False)
            call = waiting.pop(done)
            try:
                ray.get(done)  # so that a copy outlives the actor's node
            except LOST as error:
                self.instead_of(call.actor, error)
                again = self.call(call.method, *call.args)
                call.actor, call.reference = again.actor, again.reference
                if self.is_extra(call.actor):
                    waiting[call.reference] = call
        return [call.reference for call in calls]
