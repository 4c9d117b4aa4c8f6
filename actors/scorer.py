"""Scorer actors: benchmark verdicts on drawn images."""

from pathlib import Path

import ray

from actors.monitor import Monitored
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rollout.types import Rollout


@ray.remote(max_restarts=-1, max_task_retries=-1)
class ScorerActor(Monitored):
    """A BenchmarkScorer in an actor of its own. Restarts freely: it holds nothing but models."""

    def __init__(self, name: str, index: int, benchmark: str, tokenizer: Path, layout: ImageLayout):
        super().__init__(name, ("judge",))
        from simplear_rl.benchmarks.scorer import BenchmarkScorer

        with self.building():
            self.scorer = BenchmarkScorer(benchmark, tokenizer, layout)

    def judge(self, rollout: Rollout, metadata: dict, folder: Path) -> list[dict]:
        """See BenchmarkScorer.judge."""
        with self.phase("judge", rollout.seed[1], images=len(rollout.codes)):
            return self.scorer.judge(rollout, metadata, folder)
