"""The losses against TRL 1.16.0: loss, gradient and clipped share of its `GRPOTrainer._compute_loss`, in float64.

TRL was given these log-probs and advantages, `importance_sampling_level` "sequence" for gspo, and for cispo
`epsilon_high` 1.3: there it is the limit itself.
"""

import pytest
import torch

from simplear_rl.algorithms.grpo_loss import grpo_loss
from simplear_rl.config.learner import AlgorithmConfig, KlConfig

OLD = [[-3.01, -2.37, -2.75, -2.86], [-2.33, -1.48, -0.74, -3.47], [-2.1, -1.48, -3.08, -4.09]]
NOW = [[-3.07, -2.45, -2.91, -3.0], [-2.01, -1.78, 0.1, -3.72], [-2.0, -1.95, -3.54, -4.38]]
REFERENCE = [[-2.78, -1.92, -2.27, -2.99], [-2.32, -2.01, -1.02, -4.03], [-1.5, -1.62, -2.55, -3.83]]
WEIGHTS = [[0.53, 1.48, 2.0, 0.79], [2.0, 2.0, 2.0, 1.24], [2.0, 1.01, 0.4, 0.38]]
ADVANTAGES = torch.tensor([-0.4, 1.5, -1.1], dtype=torch.float64)
NO_KL = KlConfig(beta=0)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def found(config, old=OLD, reference=None, weights=None):
    log_probs = tensor(NOW).requires_grad_()
    loss, metrics = grpo_loss(
        log_probs,
        tensor(old),
        None if reference is None else tensor(reference),
        ADVANTAGES,
        config,
        None if weights is None else tensor(weights),
    )
    loss.backward()
    return loss.item(), log_probs.grad, metrics


@pytest.mark.parametrize(
    ("loss", "low", "high", "value", "gradient", "clipped"),
    [
        (
            "grpo", 0.2, 0.3, -0.07409894,
            [[0.03139215, 0.03077054, 0.02840479, 0.02897861], [0.0, -0.09260228, 0.0, -0.0973501],
             [0.10130733, 0.0, 0.0, 0.0]],
            (0.25, 1 / 6),
        ),
        (
            "gspo", 0.11, 0.1, -0.10422212,
            [[0.02986114, 0.02986114, 0.02986114, 0.02986114], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],
            (1 / 3, 1 / 3),
        ),
        (
            "cispo", 0.2, 0.3, -0.32361928,
            [[0.03139215, 0.03077054, 0.02840479, 0.02897861], [-0.1625, -0.09260228, -0.1625, -0.0973501],
             [0.10130733, 0.05729187, 0.05786767, 0.06859083]],
            (0.0, 1 / 6),
        ),
    ],
)  # fmt: skip
def test_each_loss_is_trls(loss, low, high, value, gradient, clipped):
    config = AlgorithmConfig(loss=loss, clip_low=low, clip_high=high, kl=NO_KL)
    found_value, found_gradient, metrics = found(config)
    assert found_value == pytest.approx(value, abs=1e-7)
    torch.testing.assert_close(found_gradient, tensor(gradient), rtol=0, atol=1e-7)
    assert (metrics["clip_low_fraction"], metrics["clip_high_fraction"]) == pytest.approx(clipped)


def test_weights_of_the_correction_are_trls():
    value, gradient, _ = found(AlgorithmConfig(clip_low=0.2, clip_high=0.3, kl=NO_KL), weights=WEIGHTS)
    expected = [
        [0.01663784, 0.04554041, 0.05680959, 0.0228931],
        [0.0, -0.18520456, 0.0, -0.12071412],
        [0.20261467, 0.0, 0.0, 0.0],
    ]
    assert value == pytest.approx(-0.48015641, abs=1e-7)
    torch.testing.assert_close(gradient, tensor(expected), rtol=0, atol=1e-7)


def test_kl_in_the_loss_at_the_first_update_is_trls():
    value, gradient, _ = found(AlgorithmConfig(kl=KlConfig(beta=0.5)), old=NOW, reference=REFERENCE)
    expected = [
        [0.01931552, 0.00421115, -0.00402004, 0.03291458],
        [-0.11389362, -0.1164389, -0.09692832, -0.11389362],
        [0.06463661, 0.07537633, 0.02119856, 0.06111446],
    ]
    assert value == pytest.approx(0.08849063, abs=1e-7)
    torch.testing.assert_close(gradient, tensor(expected), rtol=0, atol=1e-7)


@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo"])
def test_in_the_first_update_all_have_the_gradient_of_the_policy(loss):
    _, gradient, metrics = found(AlgorithmConfig(loss=loss, kl=NO_KL), old=NOW)
    torch.testing.assert_close(gradient, -ADVANTAGES[:, None].expand(3, 4) / 12)
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1
    assert metrics["clip_low_fraction"] == metrics["clip_high_fraction"] == 0
