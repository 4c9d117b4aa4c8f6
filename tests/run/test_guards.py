"""Steps that are refused before they change a weight, and warnings."""

import dataclasses

import numpy as np
import pytest
import torch

from simplear_rl.config.learner import AlgorithmConfig, GuardsConfig, LearnerConfig, OptimizerConfig
from simplear_rl.config.preference import PreferenceGuardsConfig
from simplear_rl.data.batches import TokenBatch
from simplear_rl.errors import UserError
from simplear_rl.learning import policy_gradient, supervised
from simplear_rl.learning.learner import Learner
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.reference import ReferencePolicy
from simplear_rl.policy.rollouts import Prompt, Rollout, ScoredRollout
from simplear_rl.policy.sampling import Sampling
from simplear_rl.run.guards import PreferenceWarnings, Warnings, narrowing

NAN = float("nan")
CODES = np.random.default_rng(0).integers(0, 100, (4, 16)).astype(np.uint16)


def groups(policy, **broken):
    """Two groups; `broken` replaces parts of the second."""
    encode = load_policy(policy)[1]
    scored = []
    for i, text in enumerate(["a red circle", "two cross"]):
        empty = np.zeros((4, 16), np.float32)
        rollout = Rollout(Prompt(i, text), encode(text), None, CODES, empty, Sampling(), 0, 0, 1)
        log_probs = ReferencePolicy(policy, "float32").log_probs([rollout])[0]
        rollout = dataclasses.replace(rollout, log_probs=log_probs)
        scored.append(ScoredRollout(rollout, np.arange(4, dtype=np.float32), log_probs))
    behaviour = broken.pop("log_probs", scored[1].rollout.log_probs)
    scored[1] = dataclasses.replace(
        scored[1], rollout=dataclasses.replace(scored[1].rollout, log_probs=behaviour), **broken
    )
    return scored


def tokens(learner):
    captions = ["a red circle", "two cross", "three blue square", "a cross"]
    offset = learner.layout.visual_offset
    return TokenBatch([np.concatenate([learner.encode(c), CODES[0].astype(np.int64) + offset]) for c in captions])


def build(policy, run, zero_stage=0, dtype="float32", micro_batch=None):
    optimizer = OptimizerConfig(learning_rate=1e-3)
    config = LearnerConfig(zero_stage=zero_stage, dtype=dtype, optimizer=optimizer, micro_batch=micro_batch)
    return Learner(config, policy, 10, micro_batches=2 * (4 // (micro_batch or 4)), run=run)


def refused(learner, step):
    """The message of a refused step, and whether the weights are the same before and after."""
    before = learner.weights().checksum
    with pytest.raises(UserError) as error:
        step()
    return str(error.value), learner.weights().checksum == before


def broken_values(policy, folder):
    good = groups(policy)
    outcomes = {}
    for name in "rewards", "reference_log_probs", "log_probs":
        learner = build(policy, folder)  # the first group has been through the one that refused
        values = np.array(good[1].rollout.log_probs if name == "log_probs" else getattr(good[1], name))
        values[2] = NAN if name != "rewards" else np.inf
        outcomes[name] = refused(
            learner,
            lambda n=name, v=values, learner=learner: policy_gradient.update(
                learner, groups(policy, **{n: v}), AlgorithmConfig()
            ),
        )
    return outcomes


def test_rewards_and_log_probs_that_are_not_finite_name_the_sample_and_save_it(run, policy, tmp_path):
    outcomes = run(broken_values, policy, tmp_path)
    expected = {
        "rewards": "the reward inf",
        "reference_log_probs": "the reference log-prob nan",
        "log_probs": "the behaviour log-prob nan",
    }
    for name, (message, unchanged) in outcomes.items():
        assert f"step 1: {expected[name]} of prompt 'two cross', sample 2: expected a finite number" in message
        assert unchanged
    saved = np.load(tmp_path / "failed-step-000001" / "prompt-1.npz")
    assert saved["prompt"] == "two cross"
    assert np.array_equal(saved["codes"], CODES)
    assert np.isnan(saved["behaviour_log_probs"][2]).all()


def broken_passes(policy, folder, zero_stage, dtype):
    """Steps refused for a loss, for a gradient, for the sum of two; each after a good step."""
    outcomes = {}
    for kind in "loss", "gradient", "sum":
        learner = build(policy, folder / kind, zero_stage, dtype)
        supervised.train(learner, tokens(learner))
        norm, passes = learner.model.model.norm, []

        def spoil(_, __, output, kind=kind, passes=passes):
            passes.append(1)
            if len(passes) == 1:  # the first pass of the step is left alone
                return None
            if kind == "gradient":
                output.register_hook(lambda gradient: gradient * NAN)
            return output * NAN if kind == "loss" else None

        if kind == "sum":  # of two finite gradients, beyond the largest float32
            norm.weight.register_hook(lambda gradient: torch.full_like(gradient, 3e38))
        else:
            norm.register_forward_hook(spoil)
        outcomes[kind] = refused(learner, lambda learner=learner: supervised.train(learner, tokens(learner)))
    return outcomes


@pytest.mark.parametrize(
    ("zero_stage", "dtype"), [(0, "float32"), (1, "float32"), (2, "float32"), (3, "float32"), (1, "bfloat16")]
)
def test_losses_and_gradients_that_are_not_finite_stop_before_the_optimizer_step(
    run, policy, tmp_path, zero_stage, dtype
):
    outcomes = run(broken_passes, policy, tmp_path, zero_stage, dtype)
    assert "step 2: the loss nan of the 2 rows that begin with" in outcomes["loss"][0]
    assert "step 2: a gradient that is infinite or nan of the 2 rows" in outcomes["gradient"][0]
    assert "step 2: the gradients' norm, summed over passes and ranks" in outcomes["sum"][0]
    assert [unchanged for _, unchanged in outcomes.values()] == [True] * 3
    saved = np.load(tmp_path / "loss" / "failed-step-000002" / "rank-0.npz")
    assert len(saved["prompt"]) == len(saved["lengths"]) == 2
    assert saved["lengths"].sum() == len(saved["ids"])
    assert all("<|t2i|>" in prompt and "<|soi|>" in prompt for prompt in saved["prompt"])


def overflowing_group(policy, folder, micro_batch=None):
    """A policy that gives one code of the second prompt no probability at all."""
    learner = build(policy, folder, micro_batch=micro_batch)
    good = groups(policy)
    far = np.array(good[1].reference_log_probs)
    far[3, 5] = 200.0  # exp(200) overflows in the KL of sample 3
    return refused(
        learner, lambda: policy_gradient.update(learner, groups(policy, reference_log_probs=far), AlgorithmConfig())
    )


def test_a_loss_that_overflows_is_refused_with_its_group(run, policy, tmp_path):
    message, unchanged = run(overflowing_group, policy, tmp_path)
    assert "step 1: the loss inf of prompt 'two cross'" in message
    assert unchanged
    saved = np.load(tmp_path / "failed-step-000001" / "prompt-1.npz")
    assert saved["reference_log_probs"][3, 5] == 200
    assert saved["log_probs"].shape == (4, 16)


def test_a_refused_part_of_a_group_names_its_samples_by_their_place_in_the_group(run, policy, tmp_path):
    message, unchanged = run(overflowing_group, policy, tmp_path, 2)
    assert "the loss inf of prompt 'two cross', all 2 samples from 2: expected" in message
    assert unchanged
    saved = np.load(tmp_path / "failed-step-000001" / "prompt-1.npz")
    assert saved["reference_log_probs"][1, 5] == 200
    assert len(saved["codes"]) == len(saved["log_probs"]) == len(saved["rewards"]) == 2


def metrics(kl=0.0, mismatch=0.0, tail=0.0, collapsed=0.0):
    values = {"kl": kl, "mismatch_mean": mismatch, "mismatch_p99": tail, "zero_advantage_groups": collapsed}
    return values | {"staleness": 0.0}


def test_warnings_come_when_a_threshold_is_crossed_and_not_again_before_it_was_met():
    warnings = Warnings(GuardsConfig(kl_warning=0.5, mismatch_mean_warning=0.1, collapsed_groups_warning=2))
    assert warnings.check(1, metrics(kl=0.5, mismatch=0.1)) == []
    (line,) = warnings.check(2, metrics(kl=0.6))
    assert line == "step 2: the policy is far from the reference: kl 0.6 (guards.kl_warning is 0.5)"
    assert warnings.check(3, metrics(kl=0.7)) == []
    assert warnings.check(4, metrics()) == []
    assert len(warnings.check(5, metrics(kl=0.6, mismatch=0.2))) == 2


def test_the_mismatch_of_many_tokens_warns():
    """The maximum over 100,000 tokens says little of the others."""
    warnings = Warnings(GuardsConfig(mismatch_mean_warning=0.1, mismatch_p99_warning=0.4))
    (line,) = warnings.check(1, metrics(mismatch=0.05, tail=0.5) | {"mismatch_max": 9.0})
    assert line == "step 1: rollout and learner disagree: mismatch_p99 0.5 (guards.mismatch_p99_warning is 0.4)"
    (line,) = warnings.check(2, metrics(mismatch=0.2, tail=0.3) | {"mismatch_max": 9.0})
    assert line == "step 2: rollout and learner disagree: mismatch_mean 0.2 (guards.mismatch_mean_warning is 0.1)"


def test_samples_that_were_drawn_ahead_may_differ():
    warnings = Warnings(GuardsConfig(mismatch_mean_warning=0.1))
    assert warnings.check(1, metrics(mismatch=0.2) | {"staleness": 1.0}) == []
    assert len(warnings.check(2, metrics(mismatch=0.2))) == 1


def test_collapsed_rewards_warn_after_as_many_steps_in_a_row_as_configured():
    warnings = Warnings(GuardsConfig(collapsed_groups_warning=3))
    shares = [1.0, 1.0, 0.9, 1.0, 1.0, 1.0, 1.0]
    lines = [warnings.check(step, metrics(collapsed=share)) for step, share in enumerate(shares, start=1)]
    assert [len(line) for line in lines] == [0, 0, 0, 0, 0, 1, 0]
    assert "all rewards of every group were equal for 3 steps (guards.collapsed_groups_warning is 3)" in lines[5][0]


def test_without_a_reference_there_is_no_warning_of_it():
    values = metrics(mismatch=0.2)
    del values["kl"]
    assert len(Warnings(GuardsConfig(mismatch_mean_warning=0.1)).check(1, values)) == 1


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ((0.6, 0.5, 0.05), 0.5),  # both halved
        ((0.6, 0.2, 0.08), 0.2),  # the smaller fall counts
        ((0.6, 0.2, 0.11), 0.0),  # more diverse
        ((0.6, 1.1, 0.05), 0.0),  # less certain
        ((0.5, 0.2, 0.05), 0.0),  # for no reward
        ((0.4, 0.2, 0.05), 0.0),
    ],
)
def test_a_policy_narrows_where_entropy_and_diversity_fall_for_more_reward(later, expected):
    steps = [(0.4, 0.9, 0.09), (0.6, 1.1, 0.11)]  # means 0.5, 1.0, 0.1
    assert narrowing([*steps, later, later]) == pytest.approx(expected)


def test_images_that_are_all_the_same_cannot_narrow():
    assert narrowing([(0.1, 1.0, 0.0), (0.2, 0.5, 0.0)]) == narrowing([(0.1, 0.0, 0.2), (0.2, 0.0, 0.1)]) == 0


def test_a_narrowing_policy_warns_once_the_window_is_full():
    warnings = Warnings(GuardsConfig(narrowing_window=4, narrowing_warning=0.3))
    shares = [1, 1, 1, 0.9, 0.6, 0.5, 0.2, 0.2, 0.2, 0.2]
    lines = [
        warnings.check(step, metrics() | {"reward": 0.1 * step, "entropy": share, "diversity": 0.1 * share})
        for step, share in enumerate(shares, start=1)
    ]
    assert [len(line) for line in lines] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert lines[5] == [
        "step 6: the reward rises while the samples become alike: entropy and diversity fell by 42% "
        "(guards.narrowing_warning is 0.3)"
    ]


def test_without_image_features_there_is_no_warning_of_narrowing():
    warnings = Warnings(GuardsConfig(narrowing_window=2))
    steps = [metrics() | {"reward": float(step), "entropy": 0.5**step} for step in range(4)]
    assert [warnings.check(i, step) for i, step in enumerate(steps)] == [[]] * 4


def test_winners_that_become_less_likely_are_said_once():
    warnings = PreferenceWarnings(PreferenceGuardsConfig(winners_warning=0.1))
    found = [
        warnings.check(step, {"winners_gain": gain}) for step, gain in enumerate((0.2, -0.05, -0.2, -0.3, 0.0, -0.2))
    ]
    assert [len(lines) for lines in found] == [0, 0, 1, 0, 0, 1]
    assert found[2][0].startswith("step 2: winners are less likely than under the reference: winners_gain -0.2 nats")
    assert found[2][0].endswith("(guards.winners_warning is 0.1)")
    assert warnings.check(6, {}) == []  # a step without pairs
