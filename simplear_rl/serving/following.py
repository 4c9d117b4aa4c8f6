"""Takes the newest checkpoint of a running training, as soon as it is whole."""

import logging
import threading
import time
from pathlib import Path

from simplear_rl.errors import UserError
from simplear_rl.run.checkpoints import checkpoints, damage, step_of, weights_sha256
from simplear_rl.serving.drawing import Drawing
from simplear_rl.weights.folder import read_weights
from simplear_rl.weights.snapshot import Weights

LOG = logging.getLogger("simplear.serve")


def newest_weights(run: Path, dtype: str, served: str | None = None) -> tuple[str, Weights] | None:
    """What names the weights of the newest intact checkpoint (weights_sha256), and these, in this type.

    Their version is the step. None if those that are `served` already are the newest: not by their step, since a
    training may start over. A checkpoint that is damaged, or that its run removes meanwhile, is passed over.
    """
    for folder in reversed(checkpoints(run)):
        try:
            name = weights_sha256(folder / "model")
            if name and name == served:
                return None
            problem = damage(folder)
            if problem or not name:
                raise UserError(problem or "no weights are there")
            return name, read_weights(folder / "model", step_of(folder), dtype)
        except (OSError, UserError) as error:
            LOG.warning("%s: not served: %s", folder, error)
    return None


class Following:
    """Looks into a run folder now and every few seconds, and gives the engine what is new there."""

    def __init__(self, run: Path, seconds: float, dtype: str, drawing: Drawing):
        self.run, self.seconds, self.dtype, self.drawing = run, seconds, dtype, drawing
        self.served: str | None = None
        self._look()
        threading.Thread(target=self._work, name="following", daemon=True).start()

    def _work(self) -> None:
        while not self.drawing.failure:
            time.sleep(self.seconds)
            self._look()

    def _look(self) -> None:
        try:
            newest = newest_weights(self.run, self.dtype, self.served)
        except OSError as error:  # of storage that is away for a while: the next look may find it
            LOG.warning("%s: cannot be read, the weights before are served: %s", self.run, error)
            return
        if newest:
            self.served, weights = newest
            LOG.warning("%s: step %d is served", self.run, self.drawing.load_weights(weights).result())
