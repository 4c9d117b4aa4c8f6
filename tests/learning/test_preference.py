"""Steps of DPO on the learner, checked against plain PyTorch, on real DeepSpeed."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from simplear_rl.algorithms.preference_loss import preference_loss
from simplear_rl.config.learner import LearnerConfig, OptimizerConfig
from simplear_rl.config.preference import PreferenceConfig
from simplear_rl.errors import UserError
from simplear_rl.learning import preference
from simplear_rl.learning.learner import Learner
from simplear_rl.policy.log_probs import rollout_log_probs
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.reference import ReferencePolicy
from simplear_rl.policy.rollouts import Prompt, Rollout, ScoredRollout
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import ImageLayout

CODES = 100  # of the policy of conftest.py
CAPTIONS = ["a red circle", "two cross", "a cross", "three blue square and a circle"]


def learner_config(zero_stage: int = 0) -> LearnerConfig:
    return LearnerConfig(zero_stage=zero_stage, optimizer=OptimizerConfig(learning_rate=1e-3))


def groups_of(policy, rewards=((1, 0),) * 4, guidance_scale=1.0) -> list[ScoredRollout]:
    """Groups of random codes with these rewards, as the reference compares them."""
    random, reference, encode = np.random.default_rng(1), ReferencePolicy(policy, "float32"), load_policy(policy)[1]
    groups = []
    for i, values in enumerate(rewards):
        codes = random.integers(0, CODES, (len(values), 16)).astype(np.uint16)
        unknown, ids = np.full(codes.shape, np.nan, np.float32), encode(CAPTIONS[i])
        other = encode.null if guidance_scale != 1 else None
        sampling = Sampling(guidance_scale=guidance_scale)
        rollout = Rollout(Prompt(i, CAPTIONS[i]), ids, other, codes, unknown, sampling, 0, 0, 1)
        groups.append(ScoredRollout(rollout, np.array(values, np.float32), reference.log_probs([rollout])[0]))
    return groups


def plain_steps(policy, groups, pairs, config, steps):
    """Losses of AdamW on the mean over all pairs (group, winner, loser), and the weights."""
    model, _ = load_policy(policy)
    layout = ImageLayout.of(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    losses = []
    for _ in range(steps):
        found = [rollout_log_probs(model, [group.rollout], layout) for group in groups]
        references = [torch.from_numpy(group.reference_log_probs) for group in groups]
        rows = [(found[g][w], found[g][l], references[g][w], references[g][l]) for g, w, l in pairs]  # noqa: E741
        loss = preference_loss(*(torch.stack(column) for column in zip(*rows, strict=True)), config).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, dict(model.named_parameters())


def steps(policy, groups, config, number=3, zero_stage=0, rank=0, ranks=1, rendezvous=None):
    """Metrics of each step of one rank, and the final weights."""
    learner = Learner(learner_config(zero_stage), policy, 10, len(groups) // ranks, rank, ranks, rendezvous)
    rows = [preference.update(learner, groups[rank::ranks], config) for _ in range(number)]
    return rows, learner.weights()


def same_weights(weights, expected, tolerance):
    for name, tensor in weights.tensors.items():
        torch.testing.assert_close(tensor, expected[name].detach(), atol=tolerance, rtol=0, msg=name)


CASES = {
    "stored pairs": (((1, 0),) * 4, {}, [(g, 0, 1) for g in range(4)]),
    "sft, smoothed": (((0, 1),) * 4, {"sft": 0.3, "label_smoothing": 0.1}, [(g, 1, 0) for g in range(4)]),
    "ipo": (((1, 0),) * 4, {"loss": "ipo", "length_normalized": True}, [(g, 0, 1) for g in range(4)]),
    "all above a margin": (
        ((0.0, 0.5, 1.0), (0.2, 0.2, 0.2)),
        {"margin": 0.6},
        [(0, 2, 0)],
    ),
    "three pairs and two": (((0.0, 0.5, 1.0), (0.9, 0.2, 0.9)), {"margin": 0.1},
        [(0, 1, 0), (0, 2, 0), (0, 2, 1), (1, 0, 1), (1, 2, 1)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_steps_are_plain_adamw_on_the_mean_over_pairs(run, policy, case):
    rewards, values, pairs = CASES[case]
    groups, config = groups_of(policy, rewards), PreferenceConfig(**values)
    losses, expected = plain_steps(policy, groups, pairs, config, 3)
    rows, weights = run(steps, policy, groups, config)
    assert [row["loss"] for row in rows] == pytest.approx(losses, abs=1e-5)
    assert all(row["pairs"] == len(pairs) for row in rows)
    same_weights(weights, expected, 1e-4)


def test_the_first_step_has_ln_2_and_no_accuracy(run, policy):
    (first, *_, last), _ = run(steps, policy, groups_of(policy), PreferenceConfig(), 4)
    assert first["loss"] == np.float32(math.log(2))
    assert first["implicit_reward_chosen"] == first["implicit_reward_rejected"] == first["margin"] == 0.0
    assert first["winners_gain"] == 0.0 and "accuracy" not in first
    assert last["accuracy"] == 1.0 and last["loss"] < first["loss"]
    assert last["margin"] == pytest.approx(last["implicit_reward_chosen"] - last["implicit_reward_rejected"])
    assert last["winners_gain"] == pytest.approx(last["implicit_reward_chosen"] / 0.1 / 16)


def test_guided_pairs_start_at_ln_2_as_well(run, policy):
    (row,), _ = run(steps, policy, groups_of(policy, guidance_scale=2.5), PreferenceConfig(), 1)
    assert row["loss"] == np.float32(math.log(2)) and "accuracy" not in row and row["grad_norm"] > 0


def test_groups_without_pairs_are_counted_and_move_nothing(run, policy):
    groups = groups_of(policy, ((1, 0), (0.5, 0.5)))
    (row, *_), weights = run(steps, policy, groups, PreferenceConfig())
    assert (row["pairs"], row["groups_without_pairs"]) == (1.0, 1.0)
    _, expected = plain_steps(policy, groups[:1], [(0, 0, 1)], PreferenceConfig(), 3)
    same_weights(weights, expected, 1e-4)
    (row,), _ = run(steps, policy, groups_of(policy, ((1, 1),)), PreferenceConfig(), 1)
    assert (row["pairs"], row["groups_without_pairs"], row["grad_norm"]) == (0.0, 1.0, 0.0)
    assert not {"loss", "accuracy", "margin"} & row.keys()


def of_every_stage(policy, groups, ranks, rank=0, rendezvous=None):
    config = PreferenceConfig(sft=0.1)
    found = [steps(policy, groups, config, 4, stage, rank, ranks, rendezvous) for stage in range(4)]
    return [[row["loss"] for row in rows] for rows, _ in found], [rows[1]["accuracy"] for rows, _ in found]


def test_ranks_and_zero_stages_agree(run, run_two_ranks, policy):
    groups = groups_of(policy)
    alone, accuracy = run(of_every_stage, policy, groups, 1)
    together = run_two_ranks(of_every_stage, policy, groups, 2)
    assert alone[0][-1] < alone[0][0] - 0.05  # enough has been learned for a difference to show
    for losses, found in (alone, accuracy), *together:
        np.testing.assert_allclose(losses, [alone[0]] * 4, atol=1e-4, rtol=0)
        assert found == accuracy


@pytest.mark.parametrize(("field", "message"), [("rewards", "the reward"), ("reference_log_probs", "the reference")])
def test_what_is_not_finite_is_refused(run, policy, field, message):
    groups = groups_of(policy)
    values = getattr(groups[2], field).copy()
    values[1] = np.nan
    groups[2] = dataclasses.replace(groups[2], **{field: values})
    with pytest.raises(UserError, match=f"step 1: {message}.* of prompt 'a cross', sample 1: expected a finite"):
        run(steps, policy, groups, PreferenceConfig(), 1)
