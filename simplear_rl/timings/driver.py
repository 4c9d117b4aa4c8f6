"""What the driver and Ray take of a GRPO step: actors that answer at once, through the code that a run goes through.

python -m simplear_rl.timings.driver --groups 8 64 512 --actors 1 8 32
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray

from actors.connection import connect
from actors.pool import Pool
from actors.sampler import Group, Sampler
from simplear_rl.policy.rollouts import Draw, Prompt, Rollout, Scores
from simplear_rl.policy.sampling import Sampling
from simplear_rl.rewards.metrics import reward_metrics

SAMPLES, TOKENS = 8, 64


@ray.remote(num_cpus=0)
class Engine:
    """Draws nothing."""

    @ray.method(num_returns="streaming")
    def generate(self, draw: Draw, version: int, weights: Any) -> Iterator[Rollout]:
        """See RolloutActor."""
        codes, log_probs = np.zeros((SAMPLES, TOKENS), np.uint16), np.zeros((SAMPLES, TOKENS), np.float32)
        for prompt in draw.prompts:
            yield draw.rollout(prompt, [1, 2, 3], None, codes, log_probs, version)


@ray.remote(num_cpus=0)
class Scorer:
    """Stands for reward and reference."""

    def score(self, rollout: Rollout) -> Scores:
        """See RewardActor."""
        rewards = np.arange(SAMPLES, dtype=np.float32)
        return Scores({"reward": rewards}, rewards)

    def log_probs(self, rollouts: list[ray.ObjectRef], policy: Path) -> list[np.ndarray]:
        """See ReferenceActor."""
        return [rollout.log_probs for rollout in ray.get(rollouts)]


@ray.remote(num_cpus=0)
class Learner:
    """Fetches its share, and learns nothing."""

    def step(self, groups: list[Group]) -> int:
        """See LearnerActor."""
        parts = [(group.rollout, group.rewards, group.reference_log_probs) for group in groups]
        return sum(len(ray.get(list(part))) for part in parts)


def measure(groups: int, actors: int, repeats: int) -> float:
    """Seconds of a step, the median."""
    roles: tuple[Any, ...] = Engine, Scorer, Scorer, Learner
    engines, rewards, references, learner = (Pool([role.remote() for _ in range(actors)]) for role in roles)
    sampler = Sampler(engines, rewards, references, contexts=10**6)
    draw = Draw([Prompt(i, "a red circle") for i in range(groups)], SAMPLES, 0, 1, Sampling())
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        drawn, _ = sampler.draw(draw, iter([]), Path(), 0)
        scored = sampler.settled(drawn)
        ray.get([rank.step.remote(scored[i::actors]) for i, rank in enumerate(learner.fixed)])
        reward_metrics(ray.get([group.rewards for group in scored]))
        seconds.append(time.perf_counter() - start)
    for pool in (engines, rewards, references, learner):
        for actor in pool.fixed:
            ray.kill(actor)
    return median(seconds[1:])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", type=int, default=[8, 64, 512])
    parser.add_argument("--actors", nargs="+", type=int, default=[1, 8, 32], help="of each role")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    connect()
    print("| groups | actors of each role | s a step | ms a group |\n| --- | --- | --- | --- |")
    for groups in options.groups:
        for actors in options.actors:
            if actors <= groups:
                seconds = measure(groups, actors, options.repeats)
                print(f"| {groups} | {actors} | {seconds:.3f} | {1e3 * seconds / groups:.2f} |", flush=True)


if __name__ == "__main__":
    main()
