"""What DeepSpeed holds, against the plan of --dry-run."""

import pytest
import torch

from simplear_rl.config.base import ActorsConfig
from simplear_rl.config.learner import LearnerConfig, OptimizerConfig
from simplear_rl.learning.cross_entropy import summed_cross_entropy
from simplear_rl.learning.learner import Learner
from simplear_rl.plan.memory import states_memory
from simplear_rl.policy.model import load_policy


def states(policy, config, rank=0, rendezvous=None):
    """Bytes of weights and of AdamW's tensors that a rank holds after a step."""
    one = Learner(config, policy, 1, 1, rank, config.actors.count, rendezvous)
    ids = torch.zeros(1, 8, dtype=torch.int64)
    one.backward(one.forward(summed_cross_entropy, ids, ids), dict)
    parameters = list(one.model.parameters())
    own = {p.untyped_storage()._cdata for p in parameters}
    weights = [getattr(p, "ds_tensor", p) for p in parameters]
    optimizer = one.engine.basic_optimizer
    held = [p for group in optimizer.param_groups for p in group["params"] if p.untyped_storage()._cdata not in own]
    held += getattr(one.engine.optimizer, "fp32_partitioned_groups_flat", [])  # ZeRO-3 takes them out of the groups
    held += [t for state in optimizer.state.values() for t in state.values() if t.numel() > 1]
    return [sum(t.numel() * t.element_size() for t in tensors) for tensors in (weights, held)]


@pytest.mark.parametrize(
    ("stage", "dtype", "ranks"),
    [(0, "float32", 1), *(pytest.param(stage, "bfloat16", 2, marks=pytest.mark.slow) for stage in (1, 3))],
)
def test_a_rank_holds_what_the_plan_says(policy, run, run_two_ranks, stage, dtype, ranks):
    """Up to 2 %, since DeepSpeed pads the parts of small tensors."""
    optimizer = OptimizerConfig(learning_rate=1e-3)
    config = LearnerConfig(zero_stage=stage, dtype=dtype, actors=ActorsConfig(count=ranks), optimizer=optimizer)
    weights, optimizer = run(states, policy, config) if ranks == 1 else run_two_ranks(states, policy, config)[0]
    model = load_policy(policy)[0]
    planned = states_memory(sum(p.numel() for p in model.parameters()), config)
    assert weights == pytest.approx(planned["weights"], rel=0.02)
    assert optimizer == pytest.approx(planned["optimizer"], rel=0.02)
