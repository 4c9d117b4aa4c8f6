"""Scorer actors: benchmark verdicts on images."""

from pathlib import Path

import ray

from actors.monitor import CONCURRENCY_GROUPS, Monitored
from simplear_rl.benchmarks.benchmark import Benchmark
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.policy.rollouts import Rollout
from simplear_rl.policy.vocabulary import ImageLayout


@ray.remote(max_task_retries=-1, concurrency_groups=CONCURRENCY_GROUPS)
class ScorerActor(Monitored):
    """A BenchmarkScorer in an actor of its own. Restarts freely: it holds nothing but models."""

    def __init__(self, name: str, index: int, config: EvaluateConfig, benchmark: Benchmark, layout: ImageLayout | None):
        super().__init__(name, ("judge",))
        from simplear_rl.benchmarks.scorer import BenchmarkScorer

        with self.building():
            self.scorer = BenchmarkScorer(config, benchmark, layout)
            self.number = config.images_per_prompt

    def judge_rollout(self, rollout: Rollout, output: Path) -> int:
        """See BenchmarkScorer.judge_rollout."""
        with self.phase("judge", rollout.step, images=len(rollout.codes)):
            return self.scorer.judge_rollout(rollout, output)

    def judge(self, index: int, folder: Path, output: Path) -> int:
        """See BenchmarkScorer.judge."""
        with self.phase("judge", 0, images=self.number):
            return self.scorer.judge(index, folder, output)
