"""Pools: extra actors join when there is room, and nothing waits for one that is gone."""

import os
import signal
import time

import pytest
import ray
from ray.exceptions import OutOfMemoryError

from actors.monitor import CONCURRENCY_GROUPS, Monitored
from actors.placement import Stage
from actors.supervision import is_behind
from simplear_rl.config.base import PoolConfig
from simplear_rl.errors import ActorLostError, UserError


@ray.remote(max_task_retries=-1, concurrency_groups=CONCURRENCY_GROUPS)
class Worker(Monitored):
    def __init__(self, name, index, refuse=False):
        super().__init__(name, ("work",))
        with self.building():
            if refuse and index:
                raise UserError("no such folder on this node")

    def work(self, seconds):
        time.sleep(seconds)
        return os.getpid()


def stage(**role):
    return Stage("elastic", {"worker.actors": PoolConfig(**role)})


def joined(pool):
    ray.get([extra.built for extra in pool.extra])
    return pool.up()


def test_calls_of_an_extra_actor_that_dies_are_made_again_and_another_one_joins(ray_cluster, capsys):
    with stage(count=1, max_count=2, cpus=0.5) as running:
        pool = running.pool("worker.actors", Worker)
        running.ready()
        fixed, extra = joined(pool)
        processes = [ray.get(actor.work.remote(0)) for actor in (fixed, extra)]
        assert ray.get(pool.settled([pool.call("work", 0) for _ in range(4)])) == processes * 2
        calls = [pool.call("work", 1) for _ in range(4)]
        os.kill(processes[1], signal.SIGKILL)
        again = ray.get(pool.settled(calls))
        assert again[::2] == processes[:1] * 2
        assert processes[1] not in again
        assert ray.get(pool.settled([pool.call("work", 0)])) == processes[:1]
        other = joined(pool)
        assert other[0] == fixed
        assert other[1] != extra
    said = capsys.readouterr().out
    assert said.count("elastic/worker-1 has joined") == 2
    assert said.count("elastic/worker-1 is gone, others do its work: ") == 1


def test_an_actor_that_the_memory_monitor_has_ended_is_one_that_is_gone(ray_cluster):
    """Ray's error, of an actor that it does not restart, is no RayActorError and does not say which actor it was."""
    error = OutOfMemoryError("the node was running low on memory")
    lost = pytest.raises(ActorLostError, match="elastic/worker-0 .* is lost: .*low on memory")
    with lost, stage(count=1, max_count=2, cpus=0.5) as running:
        pool = running.pool("worker.actors", Worker)
        running.ready()
        fixed, extra = joined(pool)
        assert not pool.replace_lost(error)
        for actor, gone in (extra, True), (fixed, False):
            ray.kill(actor)
            while not is_behind(actor, error):
                time.sleep(0.01)
            assert pool.replace_lost(error) == gone
        raise error


def test_nothing_waits_for_an_actor_without_room(ray_cluster):
    with stage(count=1, max_count=3, cpus=3) as running:
        pool = running.pool("worker.actors", Worker)
        running.ready()
        ray.wait([extra.built for extra in pool.extra], timeout=30)
        assert len(pool.up()) == 2  # of 8 CPUs
        assert len(set(ray.get(pool.settled([pool.call("work", 0) for _ in range(4)])))) == 2


def test_an_extra_actor_that_cannot_be_built_says_why(ray_cluster):
    with stage(count=1, max_count=2, cpus=0.5) as running:
        pool = running.pool("worker.actors", Worker, True)
        running.ready()
        ray.wait([extra.built for extra in pool.extra], timeout=30)
        with pytest.raises(UserError, match="no such folder on this node"):
            pool.up()
