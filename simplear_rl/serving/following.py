"""Takes the newest checkpoint of a running training, as soon as it is whole."""

import logging
import threading
import time
from pathlib import Path

from simplear_rl.errors import UserError
from simplear_rl.run.checkpoints import checkpoints, damage, step_of
from simplear_rl.serving.drawing import Drawing
from simplear_rl.weights.folder import read_weights
from simplear_rl.weights.snapshot import Weights

LOG = logging.getLogger("simplear.serve")


def newest_weights(run: Path, after: int, dtype: str) -> Weights | None:
    """The weights of the newest intact checkpoint beyond the step `after`, in this type; the version is its step.

    A checkpoint that is damaged, or that its run removes meanwhile, is passed over.
    """
    for folder in reversed(checkpoints(run)):
        if step_of(folder) <= after:
            return None
        try:
            if problem := damage(folder):
                raise UserError(problem)
            return read_weights(folder / "model", step_of(folder), dtype)
        except (OSError, UserError) as error:
            LOG.warning("%s: not served: %s", folder, error)
    return None


class Following:
    """Looks into a run folder now and every few seconds, and gives the engine what is new there."""

    def __init__(self, run: Path, seconds: float, dtype: str, drawing: Drawing):
        self.run, self.seconds, self.dtype, self.drawing = run, seconds, dtype, drawing
        self._look()
        threading.Thread(target=self._work, name="following", daemon=True).start()

    def _work(self) -> None:
        while not self.drawing.failure:
            time.sleep(self.seconds)
            self._look()

    def _look(self) -> None:
        try:
            weights = newest_weights(self.run, self.drawing.batch.engine.version, self.dtype)
        except OSError as error:  # of storage that is away for a while: the next look may find it
            LOG.warning("%s: cannot be read, the weights before are served: %s", self.run, error)
            return
        if weights:
            LOG.warning("%s: step %d is served", self.run, self.drawing.load_weights(weights).result())
