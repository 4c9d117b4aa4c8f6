"""Actors, learner and driver are killed, hung and stopped; the run ends with the weights of an undisturbed one.

CHAOS_STEPS=40 CHAOS_SEED=1 python -m pytest -s tests/actors/test_chaos.py -k killed: a random kill in every step.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import ray

from actors import sampler
from actors.broadcast import Broadcast
from actors.learner import LearnerGroup
from simplear_rl import grpo, pretrain
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig, SupervisedConfig
from simplear_rl.run.checkpoints import checkpoints
from simplear_rl.run.folder import Run
from simplear_rl.run.history import read_metrics

REPOSITORY = Path(__file__).parents[2]
STEPS = int(os.environ.get("CHAOS_STEPS", 18))
ACTORS = ["rollout.engine-0", "rollout.engine-1", "reward-0", "reference-0", "learner-0", "learner-1"]
PHASES = ["rollout", "update", "broadcast", "checkpoint"]
# Of every step: the phase in which a signal goes to an actor. Every role in every phase; every second step has a
# checkpoint, and a lost learner takes its steps since the last one with it.
PLAN = {
    1: ("rollout", "rollout.engine-0", signal.SIGKILL),
    2: ("rollout", "reward-0", signal.SIGKILL),
    3: ("broadcast", "rollout.engine-1", signal.SIGKILL),
    4: ("update", "learner-1", signal.SIGKILL),
    5: ("rollout", "reference-0", signal.SIGSTOP),
    6: ("checkpoint", "learner-0", signal.SIGKILL),
    7: ("update", "rollout.engine-0", signal.SIGKILL),
    8: ("checkpoint", "rollout.engine-1", signal.SIGKILL),
    9: ("broadcast", "learner-0", signal.SIGKILL),
    10: ("checkpoint", "reward-0", signal.SIGKILL),
    11: ("update", "reward-0", signal.SIGKILL),
    12: ("checkpoint", "reference-0", signal.SIGKILL),
    13: ("update", "reference-0", signal.SIGKILL),
    14: ("broadcast", "reference-0", signal.SIGKILL),
    15: ("rollout", "learner-1", signal.SIGKILL),
    16: ("broadcast", "reward-0", signal.SIGKILL),
    17: ("rollout", "reference-0", signal.SIGKILL),
}
if "CHAOS_STEPS" in os.environ:
    dice = random.Random(int(os.environ.get("CHAOS_SEED", 0)))
    signals = [signal.SIGKILL] * 9 + [signal.SIGSTOP]
    PLAN = {
        step: (dice.choice(PHASES[: 4 - step % 2]), dice.choice(ACTORS), dice.choice(signals))
        for step in range(1, STEPS)
    }


def overrides(world, run, *more):
    return [
        f"steps={STEPS}",
        "checkpoint_every=2",
        "samples_every=1000",
        "rollout.prompts_per_step=4",
        "rollout.samples_per_prompt=3",
        "evaluation=null",
        "keep_best=null",
        "wandb=false",
        f"root={world}",
        f"run={run}",
        f"start={world / 'policy'}",
        "rollout.engine.actors.count=2",
        "learner.actors.count=2",
        "learner.zero_stage=2",
        "learner.ema=0.9",
        "reference.refresh_every=2",
        "reference.refresh_with=ema",
        "algorithm.minibatches=2",
        "faults.heartbeat_seconds=8",
        "faults.max_restarts=20",
        *more,
    ]


@pytest.fixture(scope="module", params=[0, 1], ids="ahead={}".format)
def refilled(request, often_equal):
    """Overrides with which groups are replaced in most steps, one step after the other or drawn ahead."""
    return [*often_equal, "rollout.refill=2", f"rollout.ahead={request.param}"]


def chaos_config(world, run, *more):
    return load_config(GrpoConfig, CONFIGS / "shapes" / "grpo.yaml", overrides(world, run, *more))


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, world, refilled, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    grpo.train(chaos_config(world, run, *refilled))
    assert sum(row["refilled_groups"] > 0 for row in read_metrics(run / "metrics.jsonl")) > STEPS / 2
    return run


def assert_same(run, undisturbed):
    """Same weights bit for bit, and every step once, with the same metrics."""
    for policy in "model", "ema":
        last = [folder / "final" / ".." / policy / "model.safetensors" for folder in (run, undisturbed)]
        assert last[0].read_bytes() == last[1].read_bytes()
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (run, undisturbed)]
    assert [row["step"] for row in rows[0]] == list(range(1, STEPS + 1))
    for mine, theirs in zip(*rows, strict=True):
        for name in theirs:
            if not name.endswith("_seconds"):
                assert mine[name] == theirs[name], (theirs["step"], name)


class Chaos:
    """Sends the signals of a plan, each once, while the driver is in the phase that it is meant for."""

    def __init__(self, plan, monkeypatch):
        self.plan, self.step, self.threads = dict(plan), 0, []
        stream, broadcast = sampler.stream, Broadcast.__call__
        update, checkpoint = LearnerGroup.step, Run.checkpoint

        def disturbed_stream(engines, draw, *args):
            for i, group in enumerate(stream(engines, draw, *args)):
                if i == 0:
                    self.enter("rollout", draw.step)
                yield group

        def disturbed_update(group, step, groups):
            self.step = step
            self.enter("update", step)
            return update(group, step, groups)

        def disturbed(phase, function):
            def call(*args, **options):
                self.enter(phase, self.step)
                return function(*args, **options)

            return call

        monkeypatch.setattr(sampler, "stream", disturbed_stream)
        monkeypatch.setattr(Broadcast, "__call__", disturbed("broadcast", broadcast))
        monkeypatch.setattr(LearnerGroup, "step", disturbed_update)
        monkeypatch.setattr(Run, "checkpoint", disturbed("checkpoint", checkpoint))

    def enter(self, phase, step):
        if self.plan.get(step, [None])[0] == phase:
            _, name, number = self.plan.pop(step)
            while (process := pid(name)) is None:  # not back yet from the signal before
                time.sleep(0.1)
            self.threads.append(Thread(target=self.send, args=(step, phase, name, process, number)))
            self.threads[-1].start()

    def send(self, step, phase, name, process, number):
        time.sleep(0.01 if phase == "checkpoint" else 0.05)  # until the actors are at it
        os.kill(process, number)
        start = time.monotonic()
        while pid(name) in (None, process):
            time.sleep(0.1)
        print(f"step {step}: {phase}, {name}, {number.name}, back after {time.monotonic() - start:.1f} s", flush=True)


def pid(name, stage="grpo"):
    """Process of a live actor; None while there is none."""
    try:
        place = ray.get(ray.get_actor(f"{stage}/{name}").beat.remote(0), timeout=15)
    except (ValueError, ray.exceptions.RayError):
        return None
    return int(re.search(r"process (\d+)", place)[1])


@pytest.mark.slow
def test_killed_and_hung_actors_change_nothing(undisturbed, world, refilled, tmp_path, monkeypatch):
    chaos = Chaos(PLAN, monkeypatch)
    grpo.train(chaos_config(world, tmp_path / "run", *refilled))
    for thread in chaos.threads:
        thread.join(1)
    assert_same(tmp_path / "run", undisturbed)
    assert not chaos.plan


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["collective", "ipc"])
def test_deaths_in_other_transports_change_nothing(undisturbed, world, refilled, tmp_path, monkeypatch, transport):
    plan = {2: ("broadcast", "rollout.engine-0", signal.SIGKILL), 5: ("broadcast", "learner-1", signal.SIGKILL)}
    chaos = Chaos(plan, monkeypatch)
    grpo.train(chaos_config(world, tmp_path / "run", *refilled, f"rollout.broadcast={transport}"))
    for thread in chaos.threads:
        thread.join(1)
    assert_same(tmp_path / "run", undisturbed)
    assert not chaos.plan


@pytest.mark.slow
def test_killed_and_terminated_driver_continues(undisturbed, world, refilled, tmp_path):
    run, address = tmp_path / "run", ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "simplear_rl.grpo", *overrides(world, run, *refilled)]
    environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(REPOSITORY)}

    def until(rows, number):
        driver = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
        while len(read_metrics(run / "metrics.jsonl")) < rows:
            assert driver.poll() is None
            time.sleep(0.05)
        driver.send_signal(number)
        return driver.wait()

    assert until(3, signal.SIGKILL) == -signal.SIGKILL
    assert until(5, signal.SIGTERM) == 128 + signal.SIGTERM
    assert checkpoints(run)[-1].name == f"step-{read_metrics(run / 'metrics.jsonl')[-1]['step']:06d}"
    assert subprocess.run(command, cwd=REPOSITORY, env=environment).returncode == 0
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_pretraining_goes_on_when_a_rank_dies(ray_cluster, world, tmp_path, monkeypatch):
    def config(run):
        values = ["steps=4", "checkpoint_every=2", "wandb=false", "data.batch_size=8", "data.micro_batch=2"]
        values += [f"root={world}", f"run={run}", "learner.actors={count: 2, cpus: 1, threads: 1}"]
        return load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", values)

    pretrain.train(config(tmp_path / "undisturbed"))
    take_step, killed = LearnerGroup.step, []

    def disturbed(group, step):
        if step == 4 and not killed:
            killed.append(pid("learner-1", stage="pretrain"))
            os.kill(killed[0], signal.SIGKILL)
        return take_step(group, step)

    monkeypatch.setattr(LearnerGroup, "step", disturbed)
    pretrain.train(config(tmp_path / "run"))
    weights = [(tmp_path / run / "final" / "model.safetensors").read_bytes() for run in ("run", "undisturbed")]
    assert weights[0] == weights[1]
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]


REWARD = """\
import os, signal
from pathlib import Path

def red(images, folder, plan):
    call = len(os.listdir(folder))
    Path(folder, str(call)).touch()
    if str(call) in plan:
        os.kill(os.getpid(), getattr(signal, plan[str(call)]))
    return images[..., 0].mean((1, 2)) / 255
"""


@pytest.mark.slow
def test_a_reward_that_kills_or_stops_its_own_process_changes_nothing(ray_cluster, world, tmp_path):
    (tmp_path / "my_reward.py").write_text(REWARD)

    def train(name, plan):
        (tmp_path / name).mkdir()
        arguments = f"{{folder: {tmp_path / name}, plan: {{{plan}}}}}"
        reward = f"[{{type: python, function: {tmp_path / 'my_reward.py'}:red, arguments: {arguments}}}]"
        grpo.train(chaos_config(world, tmp_path / f"run_{name}", f"reward.models={reward}", "steps=4"))
        rows = read_metrics(tmp_path / f"run_{name}" / "metrics.jsonl")
        weights = (tmp_path / f"run_{name}" / "final" / "model.safetensors").read_bytes()
        return weights, [row["reward"] for row in rows], len(os.listdir(tmp_path / name))

    # Calls 0 and 1 try it on black images, before the run and in the actor.
    weights, rewards, calls = train("calm", "")
    assert calls == 2 + 4 * 4
    disturbed = train("disturbed", '"3": SIGKILL, "9": SIGSTOP, "14": SIGKILL')
    assert disturbed[:2] == (weights, rewards)
    assert disturbed[2] > calls
