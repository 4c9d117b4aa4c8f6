"""Both transports between real learners and engines in Ray actors, and what happens when one of them fails."""

import time
from functools import partial

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayActorError

from actors.broadcast import Broadcast
from actors.learner import LearnerGroup
from actors.placement import Stage
from actors.pool import Pool
from actors.rollout import RolloutActor, stream
from actors.supervision import gather
from simplear_rl.config.base import ActorsConfig
from simplear_rl.config.learner import AlgorithmConfig, LearnerConfig, OptimizerConfig
from simplear_rl.learning.policy_gradient import PolicyGradient
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling
from tests.conftest import make_policy

BUCKET = 100_000  # bytes; the policy below has 0.5 MB
TRANSPORTS = ["object_store", "collective", "ipc"]
OBJECTIVE = partial(PolicyGradient, config=AlgorithmConfig())  # no step is taken here


def learner_config(ranks: int, zero_stage: int) -> LearnerConfig:
    optimizer = OptimizerConfig(learning_rate=1e-3)
    return LearnerConfig(optimizer=optimizer, zero_stage=zero_stage, actors=ActorsConfig(count=ranks, cpus=0.5))


def inside(actor, function):
    """What `function(actor's instance)` returns, called in the actor."""
    return ray.get(actor.__ray_call__.remote(function))


def held(engine) -> dict[str, torch.Tensor]:
    return inside(
        engine, lambda self: self.engine.llm.apply_model(lambda m: {n: w.clone() for n, w in m.named_weights()})[0]
    )


def forget(engines) -> None:
    """Overwrite all weights of the engines, so that what they hold next has been sent."""
    for engine in engines:
        inside(
            engine,
            lambda self: self.engine.llm.apply_model(lambda m: [p.data.zero_() for p in m.parameters()]) and None,
        )


def assert_holds(engine, expected: dict[str, torch.Tensor]) -> None:
    tensors = held(engine)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8)), name


@pytest.fixture(scope="module")
def other_policy(tmp_path_factory):
    """Not the policy that the engines start from."""
    return make_policy(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def expected(other_policy):
    return {name: p.detach() for name, p in load_policy(other_policy)[0].named_parameters()}


@pytest.fixture(scope="module")
def engines(ray_cluster, policy, engine_config):
    with Stage("engines", {"engine": ActorsConfig(count=2, cpus=0.5)}) as stage:
        engines = stage.launch("engine", RolloutActor, policy, engine_config, max_restarts=2)
        stage.ready()
        yield engines


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 2])
def learner(request, engines, other_policy):
    config = learner_config(request.param, 0)
    with Stage("learners", {"learner.actors": config.actors}) as stage:
        learner = LearnerGroup(stage, config, other_policy, 10, 1, other_policy, OBJECTIVE, None)
        yield learner


def start(learner: LearnerGroup, other_policy, zero_stage: int, version: int) -> None:
    """Another learner in the same actors, with small buckets."""
    config = learner_config(len(learner.ranks), zero_stage)
    learner._all("start", "tcp://unused", config, other_policy, 10, 1, other_policy, OBJECTIVE, None)

    def prepare(self):
        self.learner.step = version
        buckets = self.learner.weight_buckets
        self.learner.weight_buckets = lambda: buckets(BUCKET)

    for rank in learner.ranks:
        inside(rank, prepare)


def test_a_sample_does_not_depend_on_its_engine(engines):
    prompts = [Prompt(i, text) for i, text in enumerate(["a red circle", "two cross", "a blue square", "a red circle"])]

    def drawn(actors, order):
        drawn = stream(Pool(actors), Draw([prompts[i] for i in order], 2, 0, 5, Sampling()), 64)
        return {i: ray.get(group) for i, group in drawn}

    together, swapped, alone = drawn(engines, range(4)), drawn(engines[::-1], range(4)), drawn(engines[:1], [3, 1])
    for i in range(4):
        assert np.array_equal(together[i].codes, swapped[i].codes)
    for i in alone:
        assert np.array_equal(together[i].codes, alone[i].codes)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_every_engine_holds_the_bytes_of_the_learner(learner, engines, other_policy, expected, zero_stage):
    start(learner, other_policy, zero_stage, version=7)
    for transport in TRANSPORTS[: len(learner.ranks) + 1]:  # ipc needs a rank for each of the two engines
        broadcast = Broadcast(transport, learner, Pool(engines))
        for _ in range(2):
            forget(engines)
            assert broadcast().items() >= {"weight_version": 7.0, "engines_verified": 2.0}.items()
            for engine in engines:
                assert_holds(engine, expected)


def test_a_damaged_byte_is_refused_and_the_next_broadcast_mends_it(learner, engines, other_policy, expected):
    start(learner, other_policy, 3, version=8)
    broadcast = Broadcast("collective", learner, Pool(engines))
    broadcast()

    def damage(self):
        receive = self.weight_group.receive

        def damaged(load):
            def flipped(named):
                named = dict(named)
                if name := next((n for n in named if "layers.1.mlp.down_proj" in n), None):
                    named[name].view(torch.uint8)[5, 6] ^= 1
                load(named.items())

            return receive(flipped)

        self.weight_group.receive = damaged

    inside(engines[1], damage)
    with pytest.raises(RuntimeError, match=r"(?s)engine-1.*version 8: model.layers.1.mlp.down_proj.weight differs"):
        broadcast()
    broadcast()
    assert_holds(engines[1], expected)


def test_an_engine_that_cannot_take_part_is_named_at_once(learner, engines, other_policy, expected):
    start(learner, other_policy, 3, version=9)
    broadcast = Broadcast("collective", learner, Pool(engines))
    broadcast()

    def occupy(self):
        self.engine._load = lambda _: (_ for _ in ()).throw(RuntimeError("weights cannot change now"))

    inside(engines[0], occupy)
    with pytest.raises(RuntimeError, match="weights cannot change now"):
        broadcast()
    inside(engines[0], lambda self: self.engine.__dict__.pop("_load") and None)
    forget(engines)
    assert broadcast()["weight_version"] == 9.0
    assert_holds(engines[0], expected)


@pytest.mark.parametrize("learner", [2], indirect=True)
def test_a_damaged_byte_in_shared_memory_is_refused(learner, engines, other_policy, expected):
    start(learner, other_policy, 3, version=11)
    broadcast = Broadcast("ipc", learner, Pool(engines))

    def damage(self):
        load = self.engine.map_weights

        def damaged(handles):
            load(handles)
            self.engine.llm.apply_model(lambda m: m.model.norm.weight.view(torch.uint8)[3:4].bitwise_xor_(1) and None)

        self.engine.map_weights = damaged

    inside(engines[0], damage)
    with pytest.raises(RuntimeError, match=r"(?s)learner-0.*version 11: model.norm.weight differs"):
        broadcast()
    inside(engines[0], lambda self: self.engine.__dict__.pop("map_weights") and None)
    broadcast()
    assert_holds(engines[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("learner", [2], indirect=True)  # after all others: it ends the engines
def test_a_restarted_engine_is_back_with_the_next_broadcast_and_a_dead_one_is_an_error(
    learner, engines, other_policy, expected
):
    start(learner, other_policy, 0, version=10)
    for transport in "collective", "ipc":
        broadcast = Broadcast(transport, learner, Pool(engines))
        broadcast()
        ray.kill(engines[1], no_restart=False)
        assert broadcast().items() >= {"weight_version": 10.0, "engines_verified": 2.0}.items()
        assert_holds(engines[1], expected)
    broadcast = Broadcast("collective", learner, Pool(engines))
    broadcast()

    def die(self):
        import os

        self.engine.receive_weights = lambda group: os._exit(1)

    inside(engines[1], die)
    with pytest.raises(RayActorError):
        broadcast()


@pytest.mark.slow
@pytest.mark.parametrize("learner", [2], indirect=True)  # the last one: it ends a rank
def test_a_rank_that_dies_while_weights_are_gathered_is_named_at_once(learner, other_policy):
    start(learner, other_policy, 3, version=12)

    def die(self):
        import os

        self.learner.weights = lambda: os._exit(1)

    inside(learner.ranks[1], die)
    with pytest.raises(RayActorError, match="learner"):
        learner.weights()


@pytest.mark.slow
def test_actors_that_do_not_answer_are_named(ray_cluster):
    sleep = ray.remote(num_cpus=0.1)(lambda seconds: time.sleep(seconds))
    quick, slow = sleep.remote(0), sleep.remote(60)
    with pytest.raises(RuntimeError, match="no answer within 20 s from rollout.engine-1"):
        gather({"rollout.engine-0": quick, "rollout.engine-1": slow}, timeout=20)
    ray.cancel(slow, force=True)
