"""The loss on held-out shards: exact, the same however it is computed, and without effect on what is trained."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from simplear_rl.config.base import ActorsConfig
from simplear_rl.config.data import TokenDataConfig, ValidationConfig
from simplear_rl.config.learner import LearnerConfig, OptimizerConfig
from simplear_rl.errors import UserError
from simplear_rl.learning.learner import Learner
from simplear_rl.learning.supervised import Supervised
from simplear_rl.policy.model import load_policy
from tests.conftest import CODES

CAPTIONS = ["a red circle", "two cross", "three blue square and a circle left of a red cross"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three folders; the last has more images than are asked for."""
    folder, random = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    for name, number in ("trained", 12), ("clean", 7), ("many", 30):
        (folder / name).mkdir()
        captions = [CAPTIONS[i % 3] for i in range(number)]
        codes = list(random.integers(0, CODES, (number, 16)))
        table = pa.table({"caption": captions, "short_caption": ["a cross"] * number, "codes": codes})
        parquet.write_table(table, folder / name / "0.parquet", row_group_size=4)
    return folder


def data(shards, **values):
    settings = {"sources": [{"shards": shards / "trained"}], "batch_size": 4, "micro_batch": 2}
    return TokenDataConfig.model_validate(settings | values)


def validated(shards, every=2, images=10):
    return data(
        shards, validation={"sources": {n: shards / n for n in ("clean", "many")}, "every": every} | {"images": images}
    )


def trained(policy, config, zero_stage, rank=0, ranks=1, rendezvous=None):
    """Metrics of four steps, and the weights after them."""
    settings = LearnerConfig(
        zero_stage=zero_stage, optimizer=OptimizerConfig(learning_rate=1e-2), actors=ActorsConfig(count=ranks)
    )
    learner = Learner(settings, policy, 4, 2 // ranks, rank, ranks, rendezvous)
    objective = Supervised(learner, config, seed=3, steps=4)
    return [objective.step(step) for step in range(1, 5)], learner.weights()


def losses(metrics):
    names = ("validation_loss", "validation_loss_clean", "validation_loss_many")
    return [[row[name] for name in names] for row in metrics if "validation_loss" in row]


def plain_loss(policy, folder, weights):
    model, encode = load_policy(policy)
    model.load_state_dict(weights, strict=False)  # the head is tied
    table = parquet.read_table(folder)
    summed = targets = 0
    for caption, codes in zip(table["caption"].to_pylist(), table["codes"].to_pylist(), strict=True):
        ids = torch.tensor([*encode(caption), *(code + len(encode.tokenizer) for code in codes)])
        with torch.no_grad():
            logits = model(ids[None, :-1]).logits[0]
        summed += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
        targets += len(ids) - 1
    return summed / targets


def test_training_goes_on_as_if_nothing_had_been_validated(run, policy, shards):
    plain, expected = run(trained, policy, data(shards), 0)
    metrics, weights = run(trained, policy, validated(shards), 0)
    assert weights.checksum == expected.checksum
    assert [row["loss"] for row in metrics] == [row["loss"] for row in plain]
    assert [sorted(row.keys() - plain[0].keys()) for row in metrics] == [
        [],
        sorted(validated(shards).validation.names),
    ] * 2
    assert losses(metrics)[1][1] == pytest.approx(plain_loss(policy, shards / "clean", weights.tensors), abs=1e-5)


def test_the_last_step_always_has_one(run, policy, shards):
    metrics, _ = run(trained, policy, validated(shards, every=3), 0)
    assert ["validation_loss" in row for row in metrics] == [False, False, True, True]


@pytest.mark.slow
def test_ranks_and_zero_stages_agree(run, run_two_ranks, policy, shards):
    """Seven images and ten, in passes of two: ranks have unequal shares, and not the same number of full passes."""
    alone, _ = run(trained, policy, validated(shards), 0)
    for zero_stage in 0, 3:
        (together, _), (other, _) = run_two_ranks(run_ranks, policy, validated(shards), zero_stage)
        assert losses(together) == losses(other)
        np.testing.assert_allclose(losses(together), losses(alone), atol=1e-4, rtol=0)


def run_ranks(policy, config, zero_stage, rank, rendezvous):
    return trained(policy, config, zero_stage, rank, 2, rendezvous)


def test_what_is_trained_on_is_not_held_out(shards):
    with pytest.raises(ValueError, match=r"these are trained on, so they are not held out: .*trained"):
        data(shards, validation={"sources": {"all": shards / "trained"}, "every": 1})
    assert ValidationConfig(sources={"a": shards}, every=1).names[:2] == ["validation_loss", "validation_loss_a"]


def test_a_source_must_have_an_image_for_each_rank(run_two_ranks, policy, shards):
    with pytest.raises(UserError, match=r"data.validation.sources.clean: 1 images for 2 learner ranks"):
        run_two_ranks(run_ranks, policy, validated(shards, images=1), 0)
