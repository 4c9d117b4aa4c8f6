"""Which groups a step has: those without signal are replaced, in the order of the prompts."""

from pathlib import Path

import numpy as np
import pytest
import ray

from actors.pool import Pool
from actors.sampler import Sampler
from simplear_rl.policy.rollouts import Draw, Prompt, Scores
from simplear_rl.policy.sampling import Sampling

OWN = ["equal 0", "a", "equal 1", "b"]
FURTHER = ["equal 2", "c", "equal 3", "d", "e"]


@ray.remote(num_cpus=0.1)
class Engine:
    @ray.method(num_returns="streaming")
    def generate(self, draw, version, weights):
        for prompt in draw.prompts:
            empty = np.zeros((draw.samples, 1))
            yield draw.rollout(prompt, [], None, empty, empty, version)


@ray.remote(num_cpus=0.1)
class Reward:
    """Says equal rewards of a prompt that asks for them: no model does so when it is asked to."""

    def score(self, rollout):
        total = np.zeros if rollout.prompt.text.startswith("equal") else np.arange
        return Scores({}, total(len(rollout.codes), dtype=np.float32))


@pytest.fixture(scope="module")
def pools(ray_cluster):
    return Pool([Engine.remote() for _ in range(2)]), Pool([Reward.remote() for _ in range(2)])


def numbered(texts, first=0):
    return [Prompt(i, text) for i, text in enumerate(texts, start=first)]


@pytest.mark.parametrize(
    ("refill", "further", "texts", "replaced"),
    [
        (0, FURTHER, OWN, None),
        (1, FURTHER, ["equal 2", "a", "c", "b"], 2),
        (2, FURTHER, ["equal 3", "a", "c", "b"], 3),
        (3, FURTHER, ["d", "a", "c", "b"], 4),
        (9, FURTHER, ["d", "a", "c", "b"], 4),
        (9, FURTHER[:1], ["equal 2", "a", "equal 1", "b"], 1),
        (9, [], OWN, 0),
    ],
)
def test_groups_of_equal_rewards_are_replaced_so_many_times(pools, refill, further, texts, replaced):
    draw = Draw(numbered(OWN), 3, 0, 1, Sampling())
    sampler = Sampler(*pools, None, 64, refill)
    drawn, metrics = sampler.draw(draw, iter(numbered(further, len(OWN))), Path(), 5, None)
    groups = sampler.settled(drawn)
    rollouts = ray.get([group.rollout for group in groups])
    assert [rollout.prompt.text for rollout in rollouts] == texts
    assert all(rollout.prompt.text == [*OWN, *further][rollout.prompt.index] for rollout in rollouts)
    assert {(rollout.weight_version, rollout.step, len(rollout.codes)) for rollout in rollouts} == {(5, 1, 3)}
    equal = [not np.ptp(ray.get(group.rewards).total) for group in groups]
    assert equal == [text.startswith("equal") for text in texts]
    assert metrics.get("refilled_groups") == replaced
