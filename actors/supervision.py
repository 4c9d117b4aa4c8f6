"""What happens when actors are lost.

Ray restarts an actor of a pool (rollout, reward, reference, scorer) and calls it again; see Stage.launch. This module
adds a heartbeat, which ends actors that hang, and finds the actor or the error that explains a failure.
simplear_rl/run/restart.py continues a stage whose learner is lost.
"""

from dataclasses import dataclass
from threading import Event, Thread
from time import monotonic
from typing import Any, NoReturn

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from simplear_rl.errors import PeerLostError, causes
from simplear_rl.run.events import say

# The second one: Ray's memory monitor has ended an actor that has no restarts left. It does not say which.
ACTOR_LOST = (RayActorError, OutOfMemoryError)
LOST = (*ACTOR_LOST, ObjectLostError)
GRACE = 10.0  # seconds in which what explains another actor's error comes to light
TIMEOUT = 300.0  # seconds of a weight broadcast; less than the process group's own, so that who is late is named


@dataclass
class Beat:
    """One call of an actor's `beat` that has not been answered yet."""

    actor: ActorHandle
    name: str
    restarts: bool  # whether Ray restarts the actor
    age: float = 0.0  # seconds
    built: bool = False  # it is not busy starting: it has answered before, or Ray says so
    lost: bool = False  # the call before was lost, and that was said
    killed: bool = False


class Heartbeat(Thread):
    """Asks every watched actor for a sign of life and kills those that owe one for `seconds`.

    `beat` is answered by a thread of its own, so an actor may compute for as long as it likes. One that is still being
    built owes nothing.
    """

    def __init__(self, seconds: float):
        super().__init__(name="heartbeat", daemon=True)
        self.seconds, self.stopped = seconds, Event()
        self.beats: dict[ray.ObjectRef, Beat] = {}
        self.places: dict[str, str] = {}  # of every actor, as last heard

    def watch(self, actor: ActorHandle, name: str, restarts: bool) -> None:
        """Begin to watch an actor; `restarts`: whether Ray restarts it."""
        self._ask(Beat(actor, name, restarts))
        if not self.is_alive():
            self.start()

    def place(self, name: str) -> str:
        """The actor's name, node, process and log file, as far as known."""
        return f"{name} ({self.places.get(name, 'not started yet; its log is in the dashboard')})"

    def stop(self) -> None:
        """Watch no longer."""
        self.stopped.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """The thread."""
        tick = self.seconds / 10
        while not self.stopped.is_set() and self.beats:
            before = monotonic()
            done, _ = ray.wait(list(self.beats), timeout=tick)
            # No more than a tick: when the driver itself was suspended, nobody else is to blame.
            passed = min(monotonic() - before, tick)
            for reference in done:
                self._answered(reference, self.beats.pop(reference))
            for beat in list(self.beats.values()):
                beat.age += passed
                if beat.age <= self.seconds or beat.killed:
                    continue
                if beat.built:
                    say(f"{self.place(beat.name)}: no heartbeat for {self.seconds:g} s, killing it")
                    beat.killed = True
                    ray.kill(beat.actor, no_restart=False)
                elif _is_built(beat.actor):
                    beat.built, beat.age = True, 0.0  # it may hang since its first moments

    def _answered(self, reference: ray.ObjectRef, beat: Beat) -> None:
        try:
            self.places[beat.name] = ray.get(reference)
        except (ActorDiedError, OutOfMemoryError):
            return  # for good: whoever calls it learns that too
        except RayActorError:
            if beat.lost and not beat.killed:  # it hangs: Ray cannot reach it, and loses call after call
                self._ask(beat)
                return
            say(f"{self.place(beat.name)} " + ("died; Ray restarts it" if beat.restarts else "cannot be reached"))
            self._ask(Beat(beat.actor, beat.name, beat.restarts, lost=True))
        else:
            self._ask(Beat(beat.actor, beat.name, beat.restarts, built=True))

    def _ask(self, beat: Beat) -> None:
        # One question is always on its way, so that no death and restart goes unnoticed.
        self.beats[beat.actor.beat.remote(self.seconds / 10)] = beat


def _is_built(actor: ActorHandle) -> bool:
    """Whether its constructor is done, in the process that it has now."""
    return _state(actor) == "ALIVE"


def _state(actor: ActorHandle) -> str | None:
    row = ray._private.state.actors().get(actor._actor_id.hex())
    return row["State"] if row else None


def lost_actor(error: BaseException | None) -> RayError | None:
    """The lost actor or object behind an error."""
    return next((cause for cause in causes(error) if isinstance(cause, LOST)), None)


def is_behind(actor: ActorHandle, error: BaseException) -> bool:
    """Whether an error says that this actor is lost, or that some actor is and this one is dead."""
    for cause in causes(error):
        if isinstance(cause, RayActorError):
            if cause.actor_id == actor._actor_id.hex():
                return True
        elif isinstance(cause, OutOfMemoryError) and _state(actor) == "DEAD":
            return True
    return False


def raise_cause(error: RayTaskError, calls: list[ray.ObjectRef]) -> NoReturn:
    """After an error in one of several actors that work together: raise what explains it, or the error itself.

    An actor that dies, or leaves a collective with an error of its own, takes the others out of it: `calls`, whose
    errors come to light within GRACE.
    """
    own = [error]
    for call in ray.wait(calls, num_returns=len(calls), timeout=GRACE)[0] if calls else []:
        try:
            ray.get(call)
        except RayTaskError as other:
            own.append(other)
    raise next((e for e in own if not isinstance(e, PeerLostError)), error)


def gather(calls: dict[str, ray.ObjectRef], timeout: float = TIMEOUT) -> list[Any]:
    """Results of calls to actors that work together, in order; does not wait for the others of one that failed."""
    waiting, deadline = list(calls.values()), monotonic() + timeout
    while waiting:
        done, waiting = ray.wait(waiting, timeout=max(0.0, deadline - monotonic()))
        if not done:
            late = [name for name, call in calls.items() if call in waiting]
            raise RuntimeError(f"weight broadcast: no answer within {timeout:g} s from {', '.join(late)}")
        try:
            ray.get(done)
        except RayTaskError as error:
            raise_cause(error, waiting)
    return ray.get(list(calls.values()))
