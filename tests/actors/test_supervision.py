"""Lost actors: found, restarted, explained, and given up after as many restarts as are allowed."""

import os
import re
import signal
import time

import pytest
import ray

from actors.monitor import CONCURRENCY_GROUPS, Monitored
from actors.placement import Stage
from actors.supervision import ActorLostError, restarting
from simplear_rl.config import CONFIGS, ActorsConfig, FaultsConfig, SupervisedConfig, load_config
from simplear_rl.errors import UserError
from simplear_rl.run import Run, read_metrics


@ray.remote(max_task_retries=-1, concurrency_groups=CONCURRENCY_GROUPS)
class Worker(Monitored):
    def __init__(self, name, index):
        super().__init__(name, ("work",))

    def process(self):
        return os.getpid()

    def work(self, seconds):
        time.sleep(seconds)
        return os.getpid()


def stage(**faults):
    return Stage("supervised", {"worker.actors": ActorsConfig(count=2, cpus=0.5)}, FaultsConfig(**faults))


def test_hung_actor_is_restarted_and_its_call_repeated_while_a_busy_one_is_left_alone(ray_cluster, capsys):
    with stage(heartbeat_seconds=5) as running:
        hung, busy = running.launch("worker.actors", Worker)
        running.ready()
        before = ray.get([hung.process.remote(), busy.process.remote()])
        ray.get([actor.beat.remote(0) for actor in (hung, busy)])
        while len(running.heartbeat.places) < 2:
            time.sleep(0.1)
        os.kill(before[0], signal.SIGSTOP)
        after = ray.get([hung.work.remote(0), busy.work.remote(8)])
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert re.search(r"supervised/worker-0 \(node .*, log .*\.err\): no heartbeat for 5 s", capsys.readouterr().out)


def test_actor_without_restarts_left_is_named_with_node_process_log_and_cause(ray_cluster):
    with pytest.raises(ActorLostError) as lost, stage(max_restarts=1) as running:
        actor, _ = running.launch("worker.actors", Worker)
        for _ in range(2):
            process = ray.get(actor.process.remote())
            while f"process {process}," not in running.heartbeat.place("supervised/worker-0"):
                time.sleep(0.1)
            os.kill(process, signal.SIGKILL)
            time.sleep(0.5)
        ray.get(actor.process.remote())
    assert not lost.value.learner
    message = str(lost.value)
    assert re.search(
        rf"supervised/worker-0 \(node [\d.]+, process {process}, log \S+-{process}\.err\) is lost", message
    )
    assert "its worker process has died" in message


@pytest.fixture
def config(tmp_path, policy):
    overrides = [
        f"root={tmp_path}",
        f"start={policy}",
        "steps=6",
        "checkpoint_every=2",
        "wandb=false",
        "faults.max_restarts=2",
    ]
    return load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", overrides)


def train_with_losses(lost_at, learner=True):
    """A stage without actors that loses its learner in those steps, each as often as it stands in the list."""
    left = list(lost_at)

    @restarting
    def train(config):
        with Run("pretrain", config) as run:
            for step in run.steps():
                if step in left:
                    left.remove(step)
                    raise ActorLostError(f"learner-0 died at {step}", learner=learner)
                run.log(step, {"loss": 0.0}, show=("loss",))
                if run.checkpoint_due:
                    run.checkpoint(lambda folder: lambda: (folder / "state").write_text("x"))

    return train


def test_lost_learner_costs_the_steps_since_the_checkpoint(config):
    train_with_losses([1, 2, 4, 4, 6, 6])(config)
    assert [row["step"] for row in read_metrics(config.run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("losses", "learner"), [([4, 4, 4], True), ([4], False)])
def test_run_ends_when_restarts_do_not_help(config, losses, learner):
    with pytest.raises(UserError, match="(?s)after step 3: learner-0 died at 4.*faults.max_restarts=2") as ended:
        train_with_losses(losses, learner)(config)
    assert not isinstance(ended.value, ActorLostError)
