"""The losses of pairs against TRL 1.16.0: loss and gradient of its `DPOTrainer._compute_loss`, in float64.

trl_dpo.csv has a line for each of 1,000 random settings: the loss, and the gradient by the winners' and the losers'
log-probs along a random direction. TRL was given the log-probs of `setting`; `loss_type` was "sigmoid",
"sigmoid_norm" or "ipo", and for label smoothing "aot", which for one pair is that; "sft" beside it for the SFT term.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from simplear_rl.algorithms.pairs import preference_pairs
from simplear_rl.algorithms.preference_loss import preference_loss
from simplear_rl.config.preference import PreferenceConfig

KINDS = ("sigmoid", "sigmoid_norm", "ipo", "aot")
SETTINGS = 1000


def setting(number):
    """Kind, values of the configuration, and log-probs of winners, losers and their references, with a direction."""
    random = np.random.default_rng((18, number))
    kind = KINDS[number % len(KINDS)]
    pairs, tokens = (1 if kind == "aot" else int(random.integers(1, 6))), int(random.integers(1, 40))
    values = {
        "loss": "ipo" if kind == "ipo" else "dpo",
        "beta": float(10 ** random.uniform(-2, 1)),
        "length_normalized": kind in ("sigmoid_norm", "ipo"),
        "label_smoothing": float(random.uniform(0, 0.49)) if kind == "aot" else 0.0,
        "sft": float(random.uniform(0, 1)) if random.random() < 0.5 else 0.0,
    }
    references = random.normal(-7, 1, (2, pairs, tokens))
    policy = references + random.normal(0, 10 ** random.uniform(-2, 0), (2, pairs, tokens))
    direction = random.normal(0, 1, (2, pairs, tokens))
    return kind, values, *(torch.from_numpy(part) for part in (policy, references, direction))


def test_losses_and_gradients_are_trls():
    file = Path(__file__).with_name("trl_dpo.csv")
    expected = [[float(number) for number in line.split(",")] for line in file.read_text().splitlines()]
    assert len(expected) == SETTINGS
    found = []
    for number in range(SETTINGS):
        _, values, policy, references, direction = setting(number)
        policy.requires_grad_()
        loss = preference_loss(*policy, *references, PreferenceConfig(**values)).loss.mean()
        (gradient,) = torch.autograd.grad(loss, policy)
        found.append([loss.item(), *(gradient * direction).sum((1, 2)).tolist()])
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-11)


def log_probs(seed=0):
    random = torch.Generator().manual_seed(seed)
    return [-20 * torch.rand(3, 4096, generator=random) for _ in range(4)]


@pytest.mark.parametrize("beta", [0.01, 0.1, 5000])
@pytest.mark.parametrize("values", [{}, {"length_normalized": True}, {"label_smoothing": 0.2}])
def test_the_loss_of_the_start_is_ln_2_exactly(beta, values):
    chosen, rejected, *_ = log_probs()
    found = preference_loss(chosen, rejected, chosen, rejected, PreferenceConfig(beta=beta, **values))
    if values.get("label_smoothing"):
        assert found.loss.tolist() == pytest.approx([math.log(2)] * 3)
    else:
        assert torch.equal(found.loss, torch.full((3,), math.log(2)))
    assert not found.chosen_gains.any() and not found.rejected_gains.any()


def test_small_differences_survive_long_sums():
    """The difference of two sums of about 40,960 would be off by more than the 4,096 differences sum to."""
    chosen, rejected, *_ = (values.double() for values in log_probs())
    moved = chosen + 1e-6
    found = preference_loss(moved.float(), rejected.float(), chosen.float(), rejected.float(), PreferenceConfig())
    rounded = (moved.float() - chosen.float()).double().sum(-1)
    torch.testing.assert_close(found.chosen_gains.double(), rounded, rtol=1e-5, atol=0)


def test_ipo_over_sums_wants_its_margin():
    chosen, rejected, *references = log_probs()
    config = PreferenceConfig(loss="ipo", beta=0.01)
    found = preference_loss(chosen, rejected, *references, config)
    margins = found.chosen_gains - found.rejected_gains
    torch.testing.assert_close(found.loss, (margins - 50).square())


@pytest.mark.parametrize(
    ("rewards", "margin", "expected"),
    [
        ([0.1, 0.9, 0.3], None, [[1, 0]]),
        ([0.5, 0.9, 0.1, 0.9, 0.1], None, [[1, 2]]),
        ([0.2, 0.2, 0.2], None, []),
        ([0.2, 0.2, 0.2], 0.0, []),
        ([0.0, 0.5, 1.0], 0.5, [[2, 0]]),
        ([0.0, 0.5, 1.0], 0.4, [[1, 0], [2, 0], [2, 1]]),
        ([1.0, 0.0], None, [[0, 1]]),
    ],
)
def test_pairs(rewards, margin, expected):
    pairs = preference_pairs(np.array(rewards, np.float32), margin)
    assert pairs.tolist() == expected and pairs.shape == (len(expected), 2)
