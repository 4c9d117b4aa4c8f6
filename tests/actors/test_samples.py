"""Samples of a step drawn ahead: with which weights, when weights may change, and the same after any interruption."""

import shutil
import time

import pytest
import ray
from safetensors.torch import load_file

from actors.samples import Samples
from simplear_rl import grpo
from simplear_rl.config.stages import GrpoConfig
from simplear_rl.data.prompts import PromptRow
from simplear_rl.errors import UserError
from simplear_rl.run.checkpoints import BEHIND
from simplear_rl.run.history import read_metrics

STEPS = 4
UNSCORED = ["evaluation=null", "keep_best=null"]
AHEAD = ["rollout.ahead=1", f"steps={STEPS}", "algorithm.correction.limit=3", "learner.ema=0.5", *UNSCORED]


def name(weights):
    return f"w{ray.get(weights).version} of a checkpoint" if isinstance(weights, ray.ObjectRef) else weights


class Roles:
    """Stands for engines and learner, and writes down what happens. Weights are their own version."""

    def __init__(self):
        self.events, self.step, self.drawing = [], 0, False

    def draw(self, draw, further, frozen, version, weights):
        self.drawing = True
        self.events.append(f"draw {draw.step} with {version}, again with {name(weights())}, against {frozen}")
        time.sleep(0.05)
        self.drawing = False
        return draw.step, {"rollout_seconds": 0.05}

    def settled(self, drawn):
        return [drawn]

    def learn(self, step, groups):
        assert groups == [step]
        self.step = step
        self.events.append(f"learn {step}")

    def load(self, checkpoint):
        self.step = int(checkpoint.name[-1])

    def weights(self):
        return f"w{self.step}"

    def broadcast(self, fetched=None):
        assert not self.drawing
        assert fetched in (None, f"w{self.step}")
        self.events.append(f"broadcast {self.step}")
        return {"weight_version": float(self.step)}

    def restore(self, weights):
        self.events.append(f"restore {name(weights)}")
        return {"weight_version": float(ray.get(weights).version)}


def events(grpo_config, run, checkpoint, *overrides):
    """What happens from a checkpoint on, and what is given to each checkpoint."""
    roles = Roles()
    config: GrpoConfig = grpo_config(run, f"steps={STEPS}", "reference.refresh_every=1", *overrides)
    broadcast = type("Broadcast", (), {"__call__": lambda _, *args: roles.broadcast(*args), "restore": roles.restore})
    reference = config.reference_step
    samples = Samples(config, [PromptRow("a circle")] * 20, roles, broadcast(), roles, reference)
    samples.begin(checkpoint)
    behind = []
    for step in range(roles.step + 1, STEPS + 1):
        groups, _ = samples(step)
        roles.learn(step, groups)
        samples.renew()
        behind.append(samples.behind)
    return roles.events, behind


def test_without_ahead_steps_are_drawn_one_after_the_other(grpo_config, tmp_path):
    happened, behind = events(grpo_config, tmp_path, None)
    assert happened == ["broadcast 0"] + [
        event
        for n in range(1, STEPS + 1)
        for event in (
            f"draw {n} with {n - 1}, again with w{n - 1}, against {n - 1}",
            f"learn {n}",
            f"broadcast {n}",
        )
    ]
    assert behind == [None] * STEPS


def test_ahead_draws_with_the_weights_of_the_step_before_also_after_a_checkpoint(
    ray_cluster, grpo_config, policy, tmp_path
):
    happened, behind = events(grpo_config, tmp_path, None, "rollout.ahead=1")
    draws = [
        f"draw {n} with {max(0, n - 2)}, again with w{max(0, n - 2)}, against {max(0, n - 2)}" for n in (1, 2, 3, 4)
    ]
    learned = [event for event in happened if not event.startswith("draw")]
    assert [event for event in happened if event.startswith("draw")] == draws
    assert learned == ["broadcast 0"] + [event for n in (1, 2, 3, 4) for event in (f"learn {n}", f"broadcast {n}")]
    for n in (1, 2, 3):  # drawn while the step before is learned
        assert happened.index(f"broadcast {n - 1}") < happened.index(draws[n]) < happened.index(f"broadcast {n}")
    assert behind == ["w0", "w1", "w2", "w3"]

    shutil.copytree(policy, tmp_path / "step-2" / BEHIND)
    happened, behind = events(grpo_config, tmp_path, tmp_path / "step-2", "rollout.ahead=1")
    old = "w1 of a checkpoint"
    assert happened[:3] == [f"restore {old}", f"draw 3 with 1, again with {old}, against 1", "broadcast 2"]
    assert happened[3:] == sorted(happened[3:], key=happened.index)
    assert {draws[3], "learn 3", "broadcast 3", "learn 4", "broadcast 4"} == set(happened[3:])
    assert behind == ["w2", "w3"]


def test_an_error_while_the_next_step_is_drawn_is_raised(grpo_config, tmp_path):
    roles = Roles()
    roles.draw = lambda *_: (_ for _ in ()).throw(RuntimeError("an engine failed"))
    samples = Samples(grpo_config(tmp_path, "rollout.ahead=1"), [PromptRow("a")] * 20, roles, None, roles, str)
    with pytest.raises(RuntimeError, match="an engine failed"):
        samples(1)


def test_older_samples_need_their_weights(grpo_config, tmp_path):
    with pytest.raises(UserError, match=r"rollout\.ahead=1: .*algorithm\.correction\.kind"):
        grpo_config(tmp_path, "rollout.ahead=1", "algorithm.correction.kind=none")


def same_end(one, other):
    for policy in "model", "ema", BEHIND:
        files = [run / "checkpoints" / f"step-{STEPS:06d}" / policy / "model.safetensors" for run in (one, other)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_a_run_ahead_that_continues_ends_with_the_same_weights(ray_cluster, often_equal, tmp_path, grpo_config):
    values = [
        *AHEAD,
        *often_equal,
        "rollout.refill=2",
        "rollout.engine.actors.count=2",
        "reference.refresh_every=1",
        "keep_checkpoints=1",
    ]
    grpo.train(grpo_config(tmp_path / "whole", *values))
    for steps in range(1, STEPS + 1):
        grpo.train(grpo_config(tmp_path / "parts", *values, f"steps={steps}"))
    same_end(tmp_path / "whole", tmp_path / "parts")
    whole, parts = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("whole", "parts"))
    for name in "reward", "kl", "grad_norm", "refilled_groups", "staleness", "correction_ess":
        assert [row[name] for row in whole] == [row[name] for row in parts], name
    assert [row["staleness"] for row in whole] == [0, 1, 1, 1]
    assert whole[0]["correction_ess"] > whole[-1]["correction_ess"]
    assert whole[0]["kl"] == 0.0

    # The policy behind is the one before the last step.
    last = load_file(tmp_path / "whole" / "checkpoints" / f"step-{STEPS:06d}" / BEHIND / "model.safetensors")
    grpo.train(grpo_config(tmp_path / "shorter", *values, f"steps={STEPS - 1}"))
    before = load_file(tmp_path / "shorter" / "final" / "model.safetensors")
    assert all((last[name] == before[name]).all() for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["collective", "ipc"])
def test_ahead_over_other_transports(ray_cluster, tmp_path, grpo_config, transport):
    grpo.train(grpo_config(tmp_path / "store", *AHEAD))
    grpo.train(grpo_config(tmp_path / transport, *AHEAD, f"rollout.broadcast={transport}"))
    same_end(tmp_path / "store", tmp_path / transport)
