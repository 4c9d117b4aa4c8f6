"""Lost actors: found, restarted, explained, and given up after as many restarts as are allowed."""

import os
import re
import signal
import time

import pytest
import ray

from actors.monitor import CONCURRENCY_GROUPS, Monitored
from actors.placement import Stage
from simplear_rl.config.base import ActorsConfig, FaultsConfig
from simplear_rl.errors import ActorLostError


@ray.remote(max_task_retries=-1, concurrency_groups=CONCURRENCY_GROUPS)
class Worker(Monitored):
    def __init__(self, name, index):
        super().__init__(name, ("work",))

    def process(self):
        return os.getpid()

    def work(self, seconds):
        time.sleep(seconds)
        return os.getpid()

    def halt_once(self, file):
        if not file.exists():
            file.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
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


@pytest.mark.slow
def test_actor_that_hangs_in_its_first_call_after_a_restart_is_restarted_again(ray_cluster, capsys, tmp_path):
    with stage(heartbeat_seconds=3) as running:
        actor, _ = running.launch("worker.actors", Worker)
        running.ready()
        os.kill(ray.get(actor.process.remote()), signal.SIGKILL)
        assert ray.get(actor.halt_once.remote(tmp_path / "halted"), timeout=60)
    assert capsys.readouterr().out.count("no heartbeat for 3 s, killing it") == 1


@pytest.mark.slow
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
