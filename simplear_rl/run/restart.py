"""The continuation of a stage whose learner is lost: it starts again from its last checkpoint."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from simplear_rl.config.stages import StageConfig
from simplear_rl.errors import ActorLostError, UserError
from simplear_rl.run.checkpoints import checkpoints, step_of
from simplear_rl.run.events import kept, say
from simplear_rl.run.folder import Run
from simplear_rl.run.history import read_metrics


def restarting(train: Callable[..., None]) -> Callable[..., None]:
    """Let `train` go on from its last checkpoint when its learner, or an object that it needs, is lost.

    At most `faults.max_restarts` times in a row without a new checkpoint; then, and when an actor of a pool has used up
    its own restarts, the run ends with a UserError that says who was lost, where, after which step and why. After
    SIGTERM nothing is started again.
    """

    @wraps(train)
    def supervised(config: StageConfig, *args: Any, **options: Any) -> None:
        restarts, last = 0, None
        while True:
            try:
                return train(config, *args, **options)
            except ActorLostError as lost:
                done = checkpoints(config.run)
                newest = [path.name for path in done][-1:]
                restarts = restarts + 1 if newest == last else 1
                last = newest
                rows = read_metrics(config.run / "metrics.jsonl")
                step = int(rows[-1]["step"]) if rows else 0
                message = f"after step {step}: {lost}"
                if Run.stopping:  # a preempted node takes its learner with it, while the driver finishes the step
                    print(message, flush=True)
                    Run.stop(config.run, step_of(done[-1]) if done else 0)
                if not lost.learner or restarts > config.faults.max_restarts:
                    again = f"{config.run}: ended after faults.max_restarts={config.faults.max_restarts} restarts"
                    raise UserError(f"{message}\n{again}; the same command continues") from lost
                with kept(config.run, partial(int, step)):
                    say(message, f"{config.run}: starting again from {(newest or ['the beginning'])[0]}")

    return supervised
