"""Evaluation while pretraining and SFT train, which have no rollout engines."""

from functools import partial

from actors.broadcast import Broadcast
from actors.evaluation import Drawing, Evaluation, by_engines
from actors.learner import LearnerGroup
from actors.placement import Stage
from actors.pool import Pool
from actors.rollout import RolloutActor
from simplear_rl.config.stages import SupervisedConfig


class SupervisedEvaluation:
    """The evaluations of a run, see Evaluation: engines of their own draw (`evaluation.engine`), or the learner."""

    def __init__(self, config: SupervisedConfig):
        self.config, self.evaluation = config, Evaluation(config, config.drawing)
        self.names, self.due = self.evaluation.names, self.evaluation.due
        self.engines: Pool | None = None

    def launch(self, stage: Stage) -> None:
        """Start scorers and engines."""
        self.evaluation.launch(stage)
        if self.config.evaluation and self.config.evaluation.engine:
            policy = self.config.start, self.config.drawing
            self.engines = stage.pool("evaluation.engine.actors", RolloutActor, *policy)

    def __call__(self, step: int, learner: LearnerGroup) -> dict[str, float]:
        """Evaluate the learner's weights after `step`. Returns metrics."""
        return self.evaluation(step, self._drawing(step, learner))

    def _drawing(self, step: int, learner: LearnerGroup) -> Drawing:
        contexts = self.config.drawing.max_concurrent
        if not self.engines:
            return partial(learner.draw, contexts=contexts)
        Broadcast("object_store", learner, self.engines)()
        return by_engines(self.engines, contexts, step, learner.weights)
