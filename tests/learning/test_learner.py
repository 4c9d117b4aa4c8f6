"""The learner's steps, checked against plain PyTorch, on real DeepSpeed."""

import dataclasses
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from transformers import Trainer

from simplear_rl.config.data import TokenDataConfig, TokenSourceConfig
from simplear_rl.config.learner import AlgorithmConfig, CorrectionConfig, KlConfig, LearnerConfig, OptimizerConfig
from simplear_rl.data.batches import TokenBatch, TokenDataset
from simplear_rl.learning import policy_gradient, supervised
from simplear_rl.learning.learner import Learner
from simplear_rl.policy import log_probs
from simplear_rl.policy.log_probs import rollout_log_probs
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.reference import ReferencePolicy
from simplear_rl.policy.rollouts import Draw, Prompt, Rollout, ScoredRollout
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import ImageLayout, read_image_tokenizer
from simplear_rl.weights.snapshot import checksum

CODES = 100  # of the policy of conftest.py


def as_drawn_now(learner, groups):
    """The same rollouts, as if the learner's weights had drawn them."""
    return [
        dataclasses.replace(group, rollout=dataclasses.replace(group.rollout, weight_version=learner.step))
        for group in groups
    ]


def config(zero_stage: int = 0, **values) -> LearnerConfig:
    return LearnerConfig(zero_stage=zero_stage, optimizer=OptimizerConfig(learning_rate=1e-3), **values)


def token_batch(encode, offset: int) -> TokenBatch:
    random = np.random.default_rng(0)
    captions = ["a red circle", "two cross", "three blue square and a circle", "a cross"]
    return TokenBatch([np.concatenate([encode(c), random.integers(0, CODES, 16) + offset]) for c in captions])


def scored_groups(policy, number: int = 2, guidance_scale: float = 1.0, version: int = 0) -> list[ScoredRollout]:
    """Groups of random codes, with the reference's log-probs as behaviour and reference alike."""
    random, reference, encode = (
        np.random.default_rng(1),
        ReferencePolicy(policy, "float32"),
        load_policy(policy)[1],
    )
    groups = []
    for i in range(number):
        codes = random.integers(0, CODES, (4, 16)).astype(np.uint16)
        text = "three blue square and a cross" if i == 1 else "a red circle"
        empty = Rollout(
            prompt=Prompt(i, text),
            prompt_ids=encode(text),
            unconditional_ids=encode.null if guidance_scale != 1 else None,
            codes=codes,
            log_probs=np.zeros((4, 16), np.float32),
            sampling=Sampling(guidance_scale=guidance_scale),
            weight_version=version,
            seed=0,
            step=1,
        )
        (log_probs,) = reference.log_probs([empty])
        rollout = dataclasses.replace(empty, log_probs=log_probs)
        groups.append(ScoredRollout(rollout, random.random(4).astype(np.float32), log_probs))
    return groups


@pytest.fixture(scope="module")
def token_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    captions = ["a red circle", "two cross", "three blue square and a circle left of a red cross", "a cross"] * 6
    codes = np.random.default_rng(0).integers(0, CODES, (1, 16)).repeat(len(captions), 0)  # soon learned
    parquet.write_table(pa.table({"caption": captions, "codes": list(codes)}), folder / "0.parquet", row_group_size=5)
    return folder


def plain_supervised_step(policy):
    model, encode = load_policy(policy)
    batch = token_batch(encode, len(encode.tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    loss = (
        sum(
            torch.nn.functional.cross_entropy(
                model(torch.from_numpy(row[None, :-1])).logits[0], torch.from_numpy(row[1:]), reduction="sum"
            )
            for row in batch.ids
        )
        / batch.target_lengths.sum()
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), dict(model.named_parameters())


def learner_supervised_step(policy, zero_stage, micro_batches):
    learner = Learner(config(zero_stage), policy, 10, micro_batches)
    metrics = supervised.train(learner, token_batch(learner.encode, learner.layout.visual_offset))
    return metrics, learner.weights()


@pytest.mark.parametrize(("zero_stage", "micro_batches"), [(0, 1), (0, 2), (1, 2), (2, 2), (3, 2)])
def test_supervised_step_is_plain_adamw_on_the_token_mean(run, policy, zero_stage, micro_batches):
    loss, expected = plain_supervised_step(policy)
    metrics, weights = run(learner_supervised_step, policy, zero_stage, micro_batches)
    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert metrics["grad_norm"] > 0
    assert weights.version == 1
    assert weights.tensors.keys() == expected.keys()
    for name, tensor in weights.tensors.items():
        torch.testing.assert_close(tensor, expected[name].detach(), atol=2e-5, rtol=0, msg=name)


def weighted_step(policy, zero_stage, weights):
    learner = Learner(config(zero_stage), policy, 10, 2)
    batch = token_batch(learner.encode, learner.layout.visual_offset)
    weights = None if weights is None else np.array(weights, np.float32)
    return supervised.train(learner, dataclasses.replace(batch, weights=weights)), learner.weights()


def test_weights_multiply_the_loss_of_their_sequences(run, policy):
    plain, plain_weights = run(weighted_step, policy, 0, None)
    ones, one_weights = run(weighted_step, policy, 0, [1, 1, 1, 1])
    assert ones["loss"] == pytest.approx(plain["loss"], abs=1e-6)
    for name, tensor in one_weights.tensors.items():
        torch.testing.assert_close(tensor, plain_weights.tensors[name], atol=2e-5, rtol=0, msg=name)
    parts = [run(weighted_step, policy, 0, [float(i == chosen) for i in range(4)])[0]["loss"] for chosen in range(4)]
    weighted, _ = run(weighted_step, policy, 3, [3, 0, 0.5, 1])
    assert sum(parts) == pytest.approx(plain["loss"], abs=1e-5)
    assert weighted["loss"] == pytest.approx(3 * parts[0] + 0.5 * parts[2] + parts[3], abs=1e-5)


def supervised_losses(policy, shards, ranks, rank=0, rendezvous=None, zero_stages=(0, 1, 2, 3)):
    """Losses of six steps under each ZeRO stage, and the final weights, as this rank reports them."""
    losses, weights = [], []
    data_config = TokenDataConfig(sources=[TokenSourceConfig(shards=shards)], batch_size=8, micro_batch=2)
    for zero_stage in zero_stages:
        learner = Learner(config(zero_stage), policy, 10, 4 // ranks, rank, ranks, rendezvous)
        data = TokenDataset(data_config, learner.encode, learner.layout, 0, rank, ranks)
        losses.append([supervised.train(learner, data.batch(step))["loss"] for step in range(1, 7)])
        weights.append(learner.weights())
    return np.array(losses), weights


def test_ranks_and_zero_stages_agree_over_several_steps(run, run_two_ranks, policy, token_shards):
    """Cross-entropies of 8 sequences a step, in micro-batches of 2."""
    alone, alone_weights = run(supervised_losses, policy, token_shards, 1)
    (first, together_weights), (second, _) = run_two_ranks(supervised_losses, policy, token_shards, 2)
    plain = alone[0]
    assert plain[-1] < plain[0] - 0.1  # enough has been learned for a difference to show
    np.testing.assert_allclose(np.stack([*alone, *((first + second) / 2)]), np.tile(plain, (8, 1)), atol=1e-4, rtol=0)
    for weights in (*alone_weights, *together_weights):
        for name, tensor in weights.tensors.items():
            torch.testing.assert_close(tensor, alone_weights[0].tensors[name], atol=2e-3, rtol=0, msg=name)


def in_unequal_chunks(policy, shards, ranks, rank, rendezvous):
    with patch.object(log_probs, "LOGITS_PER_CHUNK", 8 * load_policy(policy)[0].config.vocab_size):
        return supervised_losses(policy, shards, ranks, rank, rendezvous, zero_stages=(0, 3))


def test_ranks_may_have_other_numbers_of_chunks(run_two_ranks, policy, token_shards):
    """Captions of unequal lengths: under ZeRO 3 all ranks must call the same modules."""
    (first, weights), (second, _) = run_two_ranks(in_unequal_chunks, policy, token_shards, 2)
    assert (first != second).all()
    np.testing.assert_allclose(*(first + second), atol=1e-4, rtol=0)
    for name, tensor in weights[1].tensors.items():
        torch.testing.assert_close(tensor, weights[0].tensors[name], atol=2e-3, rtol=0, msg=name)


def checkpointed_and_not(policy, zero_stage):
    outcomes = []
    for checkpointing in False, True:
        learner = Learner(config(zero_stage, activation_checkpointing=checkpointing), policy, 10, micro_batches=2)
        layers = learner.model.model.layers
        passes = []
        layers[0].mlp.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        metrics = supervised.train(learner, token_batch(learner.encode, learner.layout.visual_offset))
        trained = len(passes)
        metrics |= policy_gradient.update(learner, scored_groups(policy, version=1), AlgorithmConfig())
        codes = learner.draw(Draw([Prompt(0, "a red circle")], 2, 0, 2, Sampling()))[0].codes
        outcomes.append((metrics, learner.weights().checksum, codes, trained))
    return outcomes


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_activation_checkpointing_changes_nothing_but_the_work(run, policy, zero_stage):
    (metrics, weights, codes, passes), (again, weights_again, codes_again, passes_again) = run(
        checkpointed_and_not, policy, zero_stage
    )
    assert again == metrics
    assert weights_again == weights
    assert np.array_equal(codes_again, codes)
    assert passes_again == 2 * passes  # every layer's forward is computed once more in the backward pass


def bfloat16_steps(policy, zero_stage):
    learner = Learner(config(zero_stage).model_copy(update={"dtype": "bfloat16"}), policy, 10, micro_batches=2)
    trained = supervised.train(learner, token_batch(learner.encode, learner.layout.visual_offset))
    groups = scored_groups(policy, version=1)
    return trained, policy_gradient.update(learner, groups, AlgorithmConfig()), learner.weights()


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_bfloat16_steps_are_close_to_those_in_float32(run, policy, zero_stage):
    loss, _ = plain_supervised_step(policy)
    supervised, update, weights = run(bfloat16_steps, policy, zero_stage)
    assert supervised["loss"] == pytest.approx(loss, abs=0.02)
    assert supervised["grad_norm"] > 0 and update["grad_norm"] > 0
    assert {tensor.dtype for tensor in weights.tensors.values()} == {torch.bfloat16}


def many_small_gradients(policy, zero_stage):
    """A step of 256 passes; the gradient of the first is 512 times that of each other one."""
    learner = Learner(config(zero_stage).model_copy(update={"dtype": "bfloat16"}), policy, 1, micro_batches=256)
    for part in range(256):
        scale = 1.0 if part == 0 else 1 / 512
        loss = learner.forward(lambda model, scale: scale * model.model.norm.weight.float().sum(), scale)
        learner.backward(loss, dict)
    return learner.finish_step()["grad_norm"], learner.model.config.hidden_size


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_gradients_of_bfloat16_are_summed_in_float32(run, policy, zero_stage):
    found, width = run(many_small_gradients, policy, zero_stage)
    assert found == pytest.approx(np.sqrt(width) * (1 + 255 / 512) / 256, rel=1e-5)  # in bfloat16, 1 + 1 / 512 is 1


def averages(policy, folder, zero_stage):
    """Weights after each of four steps, and the average that is saved; the second half continues from a checkpoint."""
    chosen = config(zero_stage).model_copy(update={"ema": 0.75})
    learner, seen = Learner(chosen, policy, 4, micro_batches=2), []
    for step in range(4):
        supervised.train(learner, token_batch(learner.encode, learner.layout.visual_offset))
        seen.append(learner.weights().tensors)
        learner.save(folder / str(step))()
        if step == 1:
            learner = Learner(chosen, policy, 4, micro_batches=2)
            learner.load(folder / "1")
    return seen


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_the_average_of_the_weights_is_saved_and_continued(run, policy, tmp_path, zero_stage):
    seen = run(averages, policy, tmp_path, zero_stage)
    expected = dict(load_policy(policy)[0].named_parameters())
    for tensors in seen:
        expected = {name: 0.75 * average + 0.25 * tensors[name] for name, average in expected.items()}
    saved = dict(load_policy(tmp_path / "3" / "ema")[0].named_parameters())
    assert saved.keys() == expected.keys()
    for name, average in expected.items():
        torch.testing.assert_close(saved[name], average)
        assert not torch.equal(saved[name], seen[-1][name])


def first_grpo_steps(policy, updates_per_batch, guidance_scale):
    learner = Learner(config(), policy, 10, micro_batches=2)
    algorithm = AlgorithmConfig(updates_per_batch=updates_per_batch)
    groups = scored_groups(policy, guidance_scale=guidance_scale)
    return [policy_gradient.update(learner, as_drawn_now(learner, groups), algorithm) for _ in range(2)]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_first_step_has_ratio_exactly_one_and_kl_exactly_zero(run, policy, guidance_scale):
    # With two updates the old log-probs are computed by themselves: with one they are the current ones.
    first, second = run(first_grpo_steps, policy, 2, guidance_scale)
    assert first["first_ratio_min"] == first["first_ratio_max"] == 1.0
    assert first["ratio_min"] < 1.0 < first["ratio_max"]  # of the second update
    assert first["kl"] == 0.0
    assert first["mismatch_max"] == 0.0
    assert second["kl"] > 0.0
    assert second["mismatch_max"] > 0.0  # the same rollouts are stale now, and it shows


def clipped_steps(policy, updates_per_batch):
    learner = Learner(config(), policy, 10, micro_batches=2)
    algorithm = AlgorithmConfig(updates_per_batch=updates_per_batch, clip_low=1e-6, clip_high=1e-6)
    return policy_gradient.update(learner, scored_groups(policy), algorithm)


def test_clip_fractions_are_those_of_the_updates_after_the_first(run, policy):
    """With bounds of nothing, a better sample is clipped when it became likelier, a worse one when it became less so.

    The first update clips nothing by construction; averaged in, it would halve the fractions.
    """
    alone = run(clipped_steps, policy, 1)
    assert not {"clip_low_fraction", "clip_high_fraction", "first_ratio_min", "clip_fraction"} & alone.keys()
    assert alone["ratio_min"] == alone["ratio_max"] == 1.0
    several = run(clipped_steps, policy, 2)
    assert several["clip_low_fraction"] > 0.2 < several["clip_high_fraction"]
    assert 0.6 < several["clip_low_fraction"] + several["clip_high_fraction"] <= 1.0


def corrected_steps(policy):
    """Steps on samples of which one token in 20 was far likelier for the learner than for the engine."""
    groups, outcomes = scored_groups(policy), []
    far = np.arange(64).reshape(4, 16) % 20 == 0
    groups = [
        dataclasses.replace(
            group, rollout=dataclasses.replace(group.rollout, log_probs=group.rollout.log_probs - np.float32(2) * far)
        )
        for group in groups
    ]
    for correction in CorrectionConfig(kind="none"), CorrectionConfig(kind="truncate"), CorrectionConfig(kind="mask"):
        learner = Learner(config(), policy, 10, micro_batches=2)
        metrics = policy_gradient.update(learner, groups, AlgorithmConfig(correction=correction))
        outcomes.append((metrics, learner.weights().checksum))
    return outcomes


def test_the_correction_weighs_the_tokens_that_the_engine_saw_otherwise(run, policy):
    (plain, weights), (truncated, weights_truncated), (masked, weights_masked) = run(corrected_steps, policy)
    assert len({str(w) for w in (weights, weights_truncated, weights_masked)}) == 3
    assert (plain["mismatch_max"], plain["mismatch_p99"]) == pytest.approx((2, 2), abs=1e-5)
    assert plain["mismatch_mean"] == pytest.approx(2 * 4 / 64, abs=1e-5)
    assert "correction_mean" not in plain
    assert truncated["correction_cut"] == masked["correction_cut"] == 4 / 64
    assert truncated["correction_mean"] == pytest.approx(1 + 4 / 64)
    assert masked["correction_mean"] == masked["correction_ess"] == pytest.approx(60 / 64)
    assert truncated["correction_ess"] == pytest.approx(68**2 / (64 * (60 + 4 * 4)))


ALGORITHM = {"clip_low": 0.01, "clip_high": 0.02, "advantage": "mean", "kl": KlConfig(beta=0.5)}


def plain_grpo_steps(policy, groups, minibatches, updates):
    """GRPO in plain PyTorch: so many optimizer steps over parts of the groups, `updates` times over all."""
    model = load_policy(policy)[0]
    layout, optimizer = ImageLayout.of(model.config), torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.95))
    old = [rollout_log_probs(model, [group.rollout], layout).detach() for group in groups]
    for part in [*np.split(np.arange(len(groups)), minibatches)] * updates:
        optimizer.zero_grad()
        for i in part:
            rewards = torch.from_numpy(groups[i].rewards)
            advantages = (rewards - rewards.mean())[:, None]
            log_probs = rollout_log_probs(model, [groups[i].rollout], layout)
            ratio = (log_probs - old[i]).exp()
            policy_loss = -torch.minimum(ratio * advantages, ratio.clamp(0.99, 1.02) * advantages)
            difference = torch.from_numpy(groups[i].reference_log_probs) - log_probs
            kl = ratio.detach() * (difference.exp() - difference - 1)
            ((policy_loss + 0.5 * kl).mean() / len(part)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def minibatch_step(policy, zero_stage, minibatches, updates):
    """Of four groups, in their minibatches."""
    learner = Learner(config(zero_stage), policy, 10, micro_batches=4 // minibatches)
    algorithm = AlgorithmConfig(minibatches=minibatches, updates_per_batch=updates, **ALGORITHM)
    groups = scored_groups(policy, 4)
    return (
        policy_gradient.update(learner, groups, algorithm),
        learner.weights(),
        plain_grpo_steps(policy, groups, minibatches, updates),
    )


@pytest.mark.parametrize(("zero_stage", "minibatches", "updates"), [(0, 1, 1), (0, 2, 1), (2, 4, 1), (0, 2, 2)])
def test_minibatches_are_steps_of_plain_grpo(run, policy, zero_stage, minibatches, updates):
    metrics, weights, expected = run(minibatch_step, policy, zero_stage, minibatches, updates)
    assert weights.version == 1  # one batch is one step, however many the optimizer takes
    for name, tensor in weights.tensors.items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-5, rtol=0, msg=name)
    assert metrics["kl"] == metrics["mismatch_max"] == 0  # of all groups before the first update
    if minibatches * updates > 1:
        assert metrics["first_ratio_min"] == metrics["first_ratio_max"] == 1
        assert metrics["ratio_min"] < 1 < metrics["ratio_max"]
        assert metrics["clip_high_fraction"] > 0


def steps_on_rounded_samples(policy):
    """Steps on samples whose behaviour log-probs differ in their last digits, corrected and not."""
    random, groups, checksums = np.random.default_rng(0), scored_groups(policy), []
    noise = random.uniform(-5e-5, 5e-5, (4, 16)).astype(np.float32)
    noisy = [
        dataclasses.replace(g, rollout=dataclasses.replace(g.rollout, log_probs=g.rollout.log_probs + noise))
        for g in groups
    ]
    for drawn, kind in (groups, "none"), (groups, "truncate"), (noisy, "truncate"):
        learner = Learner(config(), policy, 10, micro_batches=2)
        policy_gradient.update(learner, drawn, AlgorithmConfig(correction=CorrectionConfig(kind=kind)))
        checksums.append(learner.weights().checksum)
    return checksums


def test_last_digits_of_the_engine_do_not_reach_the_weights(run, policy):
    uncorrected, corrected, noisy = run(steps_on_rounded_samples, policy)
    assert uncorrected == corrected == noisy


def steps_in_passes_of(policy, zero_stage, micro_batch, algorithm):
    """Two steps of two groups of four, on samples that the engine saw a little otherwise."""
    images = 2 * 4 // algorithm.minibatches
    passes = images // min(micro_batch or 4, images)  # of an optimizer step
    learner = Learner(config(zero_stage, micro_batch=micro_batch), policy, 10, passes)
    groups = [
        dataclasses.replace(
            group, rollout=dataclasses.replace(group.rollout, log_probs=group.rollout.log_probs - np.float32(0.1))
        )
        for group in scored_groups(policy)
    ]
    metrics = [policy_gradient.update(learner, as_drawn_now(learner, groups), algorithm) for _ in range(2)]
    return metrics, learner.weights().tensors


@pytest.mark.parametrize(
    ("zero_stage", "algorithm"),
    [
        (0, {}),
        (2, {"correction": {"kind": "truncate"}}),
        (3, {"updates_per_batch": 2, "loss": "gspo"}),
        (0, {"minibatches": 2, "loss": "cispo", "kl": {"placement": "reward", "beta": 0.1}}),
        (0, {"kl": {"placement": "reward", "beta": 0.1}, "advantage": "mean"}),
    ],
)
def test_passes_over_parts_of_a_group_or_several_have_the_same_gradient(run, policy, zero_stage, algorithm):
    chosen = AlgorithmConfig(**algorithm)
    sizes = None, 1, 8 // chosen.minibatches, 24  # more than there are
    (whole, expected), *others = (run(steps_in_passes_of, policy, zero_stage, size, chosen) for size in sizes)
    for metrics, weights in others:
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, expected[name], atol=2e-5, rtol=0, msg=name)
        for row, first in zip(metrics, whole, strict=True):
            assert row == pytest.approx(first | {"mismatch_p99": row["mismatch_p99"]}, abs=1e-4)


def stale_step(policy):
    learner = Learner(config(), policy, 10, micro_batches=2)
    policy_gradient.update(learner, scored_groups(policy), AlgorithmConfig())
    before = learner.weights().checksum
    with pytest.raises(RuntimeError) as caught:
        policy_gradient.update(learner, scored_groups(policy), AlgorithmConfig())
    return str(caught.value), learner.weights().checksum == before


def test_rollouts_of_other_weights_are_refused(run, policy):
    message, unchanged = run(stale_step, policy)
    assert message == "step 2: the rollout of prompt 'a red circle' has weights of step 0, expected step 1"
    assert unchanged


def steps_with_and_without_reference(policy):
    outcomes, algorithm = [], AlgorithmConfig(kl=KlConfig(beta=0))
    for compared in True, False:
        learner = Learner(config(), policy, 10, micro_batches=2)
        groups = scored_groups(policy)
        if not compared:
            groups = [dataclasses.replace(group, reference_log_probs=None) for group in groups]
        metrics = policy_gradient.update(learner, groups, algorithm)
        outcomes.append((metrics.keys(), learner.weights().checksum))
    return outcomes


def test_with_beta_zero_a_reference_changes_nothing(run, policy):
    (names, weights), (names_without, weights_without) = run(steps_with_and_without_reference, policy)
    assert weights == weights_without
    assert names - names_without == {"kl"}


def drawn_log_probs(learner, group):
    """Log-probs of the images [G]."""
    return policy_gradient.log_probs_and_entropy(learner, [group], AlgorithmConfig(), no_grad=True)[0].sum(1)


def rewarded_log_probs(policy):
    learner = Learner(config(), policy, 10, micro_batches=2)
    groups = scored_groups(policy)
    before = drawn_log_probs(learner, groups[0])
    for _ in range(5):
        policy_gradient.update(learner, as_drawn_now(learner, groups), AlgorithmConfig())
    return drawn_log_probs(learner, groups[0]) - before, groups[0].rewards


def test_updates_favour_the_better_samples(run, policy):
    gain, rewards = run(rewarded_log_probs, policy)
    assert np.corrcoef(gain.numpy(), rewards)[0, 1] > 0.8


BEFORE = {"learning_rate": 1e-3, "weight_decay": 0.01, "betas": (0.9, 0.95), "gradient_clip": 1.0}
NOW = {"learning_rate": 3e-4, "weight_decay": 0.5, "betas": (0.5, 0.7), "gradient_clip": 0.3}
PUBLISHED = {"learning_rate": 1e-3, "weight_decay": 0.5, "betas": (0.9, 0.999), "decay_norms": False}


def transformers_decays(model):
    """Names of the weights that the published trainer decays."""
    return set(Trainer.get_decay_parameter_names(None, model))


def plain_steps(policy, settings):
    """Weights after one step with each of the settings."""
    model, encode = load_policy(policy)
    batch = token_batch(encode, len(encode.tokenizer))
    decayed = transformers_decays(model)
    optimizer = torch.optim.AdamW(
        [{"params": [p for n, p in model.named_parameters() if (n in decayed) == decays]} for decays in (True, False)]
    )
    for values in settings:
        for group in optimizer.param_groups:
            group.update(lr=values["learning_rate"], betas=values["betas"], weight_decay=values["weight_decay"])
        if not values.get("decay_norms", True):
            optimizer.param_groups[1]["weight_decay"] = 0
        optimizer.zero_grad()
        losses = [
            torch.nn.functional.cross_entropy(
                model(torch.from_numpy(row[None, :-1])).logits[0], torch.from_numpy(row[1:]), reduction="sum"
            )
            for row in batch.ids
        ]
        (sum(losses) / batch.target_lengths.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), values.get("gradient_clip", 1.0))
        optimizer.step()
    return dict(model.named_parameters())


def resumed_with(policy, folder, zero_stage, before, now):
    """Metrics of a step with the optimizer `before`, of one with `now` after resuming, and the weights then."""
    metrics = []
    for values in before, now:
        optimizer = OptimizerConfig(**values)
        learner = Learner(config(zero_stage).model_copy(update={"optimizer": optimizer}), policy, 10, micro_batches=1)
        if metrics:
            learner.load(folder)
        metrics.append(supervised.train(learner, token_batch(learner.encode, learner.layout.visual_offset)))
        learner.save(folder)()
    return metrics, learner.weights().tensors


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_resumed_run_has_the_optimizer_of_its_configuration(run, policy, tmp_path, zero_stage):
    metrics, weights = run(resumed_with, policy, tmp_path, zero_stage, BEFORE, NOW)
    assert [row["learning_rate"] for row in metrics] == [1e-3, 3e-4]
    assert metrics[1]["grad_norm"] > NOW["gradient_clip"]  # so that clipping shows
    for name, tensor in plain_steps(policy, [BEFORE, NOW]).items():
        torch.testing.assert_close(weights[name], tensor.detach(), atol=2e-5, rtol=0, msg=name)
    unchanged = plain_steps(policy, [BEFORE, BEFORE])
    assert any((weights[name] - tensor).abs().max() > 1e-4 for name, tensor in unchanged.items())


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_norms_and_biases_are_spared_as_by_the_published_trainer(run, policy, tmp_path, zero_stage):
    """Also in a run that continues with the other setting."""
    _, weights = run(resumed_with, policy, tmp_path, zero_stage, BEFORE, PUBLISHED)
    for name, tensor in plain_steps(policy, [BEFORE, PUBLISHED]).items():
        torch.testing.assert_close(weights[name], tensor.detach(), atol=2e-5, rtol=0, msg=name)
    decayed = plain_steps(policy, [BEFORE, PUBLISHED | {"decay_norms": True}])
    differs = {name for name, tensor in decayed.items() if (weights[name] - tensor).abs().max() > 1e-4}
    assert {name for name in differs if "norm" in name} and not differs & transformers_decays(load_policy(policy)[0])


def rates(policy, folder, dtype, optimizers):
    """The learning rates of three steps with each of the optimizers, each resumed from the one before."""
    logged = []
    for values in optimizers:
        stage = 0 if dtype == "float32" else 1
        chosen = config(stage).model_copy(update={"optimizer": OptimizerConfig(**values), "dtype": dtype})
        learner = Learner(chosen, policy, 12, micro_batches=1)
        if logged:
            learner.load(folder)
        batch = token_batch(learner.encode, learner.layout.visual_offset)
        logged += [supervised.train(learner, batch)["learning_rate"] for _ in range(3)]
        learner.save(folder)()
    return logged


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_rate_that_is_logged_is_that_of_the_step(run, policy, tmp_path, dtype):
    warming = {"learning_rate": 1.0, "warmup_steps": 4}
    found = run(rates, policy, tmp_path, dtype, [warming, warming, {"learning_rate": 0.1, "warmup_steps": 20}])
    assert found == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 0.1 * 7 / 20, 0.1 * 8 / 20, 0.1 * 9 / 20])
    found = run(rates, policy, tmp_path, dtype, [{"learning_rate": 1.0}, {"learning_rate": 1.0, "schedule": "cosine"}])
    assert found == pytest.approx([1, 1, 1, *((1 + np.cos(np.pi * step / 12)) / 2 for step in (3, 4, 5))])


def remembered_tokenizers(policy, folder):
    for name, start, tokenizer in ("first", policy, "sha256:1"), ("second", folder / "first" / "model", None):
        Learner(config(), start, 10, micro_batches=1, tokenizer=tokenizer).save(folder / name)()
    return [read_image_tokenizer(folder / name / "model") for name in ("first", "second")]


def test_saved_policies_remember_the_visual_tokenizer(run, policy, tmp_path):
    assert read_image_tokenizer(policy) is None
    assert run(remembered_tokenizers, policy, tmp_path) == ["sha256:1", "sha256:1"]


def interrupted_and_not(policy, folder, zero_stage):
    learner = Learner(config(zero_stage), policy, 10, micro_batches=2)
    groups = scored_groups(policy)
    policy_gradient.update(learner, as_drawn_now(learner, groups), AlgorithmConfig())
    write = learner.save(folder)
    learner.save(folder / "at once")()
    policy_gradient.update(learner, as_drawn_now(learner, groups), AlgorithmConfig())
    through = learner.weights()
    write()
    learner.load(folder)
    policy_gradient.update(learner, as_drawn_now(learner, groups), AlgorithmConfig())
    return through, learner.weights()


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_resumed_run_has_the_same_weights_bit_for_bit(run, policy, tmp_path, zero_stage):
    through, resumed = run(interrupted_and_not, policy, tmp_path, zero_stage)
    assert through == dataclasses.replace(resumed, tensors=through.tensors)
    saved = {name: p.detach() for name, p in load_policy(tmp_path / "model")[0].named_parameters()}
    assert saved.keys() == through.tensors.keys()
    assert checksum(saved.items()) != through.checksum
    for folder in "model", "learner":
        files = [file for file in (tmp_path / folder).rglob("*") if file.is_file()]
        assert files
        for file in files:  # written one step later than copied
            assert file.read_bytes() == (tmp_path / "at once" / file.relative_to(tmp_path)).read_bytes(), file


def entropies(policy, zero_stage, bonus, algorithm):
    """`entropy` of two steps on groups of equal rewards, without KL: the bonus alone has a gradient."""
    learner = Learner(config(zero_stage, micro_batch=2), policy, 10, 2 * 2 // algorithm.get("minibatches", 1))
    chosen = AlgorithmConfig(kl=KlConfig(beta=0), entropy_bonus=bonus, **algorithm)
    groups = [dataclasses.replace(group, rewards=np.ones(4, np.float32)) for group in scored_groups(policy)]
    steps = [policy_gradient.update(learner, as_drawn_now(learner, groups), chosen) for _ in range(2)]
    return [step["entropy"] for step in steps], [step["loss"] for step in steps], steps[0]["grad_norm"]


@pytest.mark.parametrize(("zero_stage", "algorithm"), [(0, {}), (2, {"minibatches": 2}), (3, {"updates_per_batch": 2})])
def test_the_entropy_bonus_alone_raises_the_entropy(run, policy, zero_stage, algorithm):
    (before, after), (loss, _), norm = run(entropies, policy, zero_stage, 0.5, algorithm)
    assert after > before
    assert norm > 0
    if not algorithm:
        assert loss == pytest.approx(-0.5 * before, abs=1e-6)
    (plain, again), losses, none = run(entropies, policy, zero_stage, 0.0, algorithm)
    assert plain == before  # of the policy that drew, whatever the updates do
    assert again == pytest.approx(plain, abs=1e-4) and losses == [0, 0] and none == 0
