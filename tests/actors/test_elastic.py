"""Nodes join a running GRPO stage and die at work, with some of its actors or all: the weights stay the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

# In a process of its own: several raylets on this machine make up a cluster to which nodes are added.
DRIVER = """
import json, os, re, signal, sys, time
from pathlib import Path
from threading import Thread
import ray
from ray.cluster_utils import Cluster

import actors.broadcast
from actors import sampler
from actors.placement import Stage
from simplear_rl import grpo
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig
from simplear_rl.run.folder import Run

world, folder, phase, transport = sys.argv[1:]
ray._private.utils.write_ray_address = lambda *_: None  # no other driver of this machine is to join this cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
ray.init(cluster.address, log_to_driver=False, configure_logging=False)


def train(name, *more):
    values = ["steps=8", "checkpoint_every=4", "samples_every=1000", "rollout.prompts_per_step=4", "wandb=false"]
    values += ["rollout.samples_per_prompt=3", "faults.heartbeat_seconds=60", f"root={world}", f"start={world}/policy"]
    values += ["evaluation=null", "keep_best=null"]
    values += [f"{role}.cpus=1" for role in ("learner.actors", "rollout.engine.actors", "reward.actors", "reference")]
    grpo.train(load_config(GrpoConfig, CONFIGS / "shapes" / "grpo.yaml", [*values, f"run={folder}/{name}", *more]))


train("undisturbed")
pools, nodes, used = [], [], {}
pool, log, stream, broadcast = Stage.pool, Run.log, sampler.stream, actors.broadcast.Broadcast.__call__


def place(actor):
    return ray.get(actor.__ray_call__.remote(lambda self: (ray.get_runtime_context().get_node_id(), os.getpid())))


def on_new_node(actor):
    try:
        return bool(nodes) and place(actor)[0] == nodes[-1].node_id
    except ray.exceptions.RayActorError:
        return False  # not noticed yet


def remembered(*args):
    pools.append(pool(*args))
    return pools[-1]


def join():
    nodes.append(cluster.add_node(num_cpus=2))
    for part in pools[:2]:
        ray.get([extra.built for extra in part.extra])


def die():
    # Stopped first, so that it cannot finish what it is given.
    places = [place(extra.actor) for part in pools[:2] for extra in part.extra]
    assert {node for node, _ in places} == {nodes[-1].node_id}
    for _, process in places:
        os.kill(process, signal.SIGSTOP)

    def kill():
        time.sleep(1)
        for _, process in places:
            os.kill(process, signal.SIGKILL)
        cluster.remove_node(nodes[-1], allow_graceful=False)

    Thread(target=kill).start()


def watched(run, step, *args, **options):
    log(run, step, *args, **options)
    if step in (2, 5):
        join()


def watched_stream(engines, draw, *args):
    step = draw.step
    used[step] = [sum(on_new_node(actor) for actor in part.up()) for part in pools]
    if step == 4 and phase == "rollout":
        die()
    watched_stream.step = step
    yield from stream(engines, draw, *args)


def watched_broadcast(self, fetched=None):
    if getattr(watched_stream, "step", 0) == 4 and phase == "broadcast":
        die()
        watched_stream.step = 0
    return broadcast(self, fetched)


Stage.pool, Run.log, sampler.stream = remembered, watched, watched_stream
actors.broadcast.Broadcast.__call__ = watched_broadcast
more = [f"{role}.max_count=2" for role in ("rollout.engine.actors", "reward.actors")]
start = time.monotonic()
train("elastic", f"rollout.broadcast={transport}", *more)
print(json.dumps(used))
ray.shutdown()
cluster.shutdown()
"""


NODE_LOSS = """
import sys
import ray
from ray.cluster_utils import Cluster

from actors import sampler
from simplear_rl import grpo
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig

world, folder = sys.argv[1:]
ray._private.utils.write_ray_address = lambda *_: None
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=4), cluster.add_node(num_cpus=4))}
ray.init(cluster.address, log_to_driver=False, configure_logging=False)


def train(name):
    values = ["steps=6", "checkpoint_every=2", "samples_every=1000", "rollout.prompts_per_step=4", "wandb=false"]
    values += ["rollout.samples_per_prompt=3", "faults.heartbeat_seconds=60", f"root={world}", f"start={world}/policy"]
    values += ["evaluation=null", "keep_best=null", f"run={folder}/{name}"]
    values += [f"{role}.cpus=1" for role in ("learner.actors", "rollout.engine.actors", "reward.actors", "reference")]
    grpo.train(load_config(GrpoConfig, CONFIGS / "shapes" / "grpo.yaml", values))


train("undisturbed")
stream = sampler.stream


def watched_stream(engines, draw, *args):
    step = draw.step
    for i, group in enumerate(stream(engines, draw, *args)):
        yield group
        if step == 4 and i == 0 and len(nodes) == 2:
            here = lambda _: ray.get_runtime_context().get_node_id()
            cluster.remove_node(nodes.pop(ray.get(engines.fixed[0].__ray_call__.remote(here))), allow_graceful=False)


sampler.stream = watched_stream
train("disturbed")
assert len(nodes) == 1
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_the_node_with_all_actors_dies(world, tmp_path):
    command = [sys.executable, "-c", NODE_LOSS, str(world), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=REPOSITORY)
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "starting again from step-000002" in done.stdout
    assert_same_runs(tmp_path / "undisturbed", tmp_path / "disturbed", steps=6)


def assert_same_runs(*runs, steps):
    weights = [(run / "final" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    assert [row["step"] for row in rows[1]] == list(range(1, steps + 1))
    assert [row["reward"] for row in rows[0]] == [row["reward"] for row in rows[1]]


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "transport"), [("rollout", "object_store"), ("broadcast", "collective")])
def test_nodes_join_die_and_join_again(world, tmp_path, phase, transport):
    command = [sys.executable, "-c", DRIVER, str(world), str(tmp_path), phase, transport]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    *said, used = done.stdout.splitlines()
    assert json.loads(used) == {str(step): [1, 1, 0] if step in (3, 4, 6, 7, 8) else [0, 0, 0] for step in range(1, 9)}
    for role in "rollout.engine-1", "reward-1":
        assert sum(line == f"grpo/{role} has joined" for line in said) == 2
        assert sum(line.startswith(f"grpo/{role} is gone, others do its work") for line in said) == 1
    assert_same_runs(tmp_path / "undisturbed", tmp_path / "elastic", steps=8)
