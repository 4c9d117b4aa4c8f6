"""GRPO on the learner: log-probs of the samples under the policy, the loss of each group, the optimizer steps.

Advantages, ratios and KL are computed here, where the log-probs are; their formulas stand in algorithms/.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from simplear_rl.algorithms.advantages import no_signal
from simplear_rl.algorithms.correction import correction_weights
from simplear_rl.algorithms.grpo_loss import advantages_with_kl, grpo_loss
from simplear_rl.config.learner import AlgorithmConfig
from simplear_rl.learning.metrics import combined
from simplear_rl.policy.log_probs import rollout_log_probs_and_entropy
from simplear_rl.policy.rollouts import Rollout, ScoredRollout
from simplear_rl.run.guards import Evidence, group_evidence, refusal

if TYPE_CHECKING:  # the learner brings DeepSpeed, which the drivers do without
    from simplear_rl.learning.learner import Learner

RATIOS = ("ratio_min", "ratio_max")
CLIPPED = ("clip_low_fraction", "clip_high_fraction")


class PolicyGradient:
    """The objective of GRPO: the policy loss of what was drawn, with its KL term."""

    def __init__(self, learner: "Learner", config: AlgorithmConfig, ahead: int = 0):
        self.learner, self.config, self.ahead = learner, config, ahead

    def images(self, groups: Sequence[ScoredRollout]) -> int:
        """See Objective."""
        return len(groups) * len(groups[0].rewards) if groups else 0

    def step(self, step: int, groups: Sequence[ScoredRollout]) -> dict[str, float]:
        """See Objective."""
        return update(self.learner, groups, self.config, self.ahead)


def update(
    learner: "Learner", groups: Sequence[ScoredRollout], config: AlgorithmConfig, ahead: int = 0
) -> dict[str, float]:
    """One batch on this rank: an optimizer step for every minibatch of whole groups, and that several times over.

    A group is taken from `groups` when its turn comes: with one optimizer step, others may still be scored meanwhile.
    A pass has a group, or `learner.micro_batch` samples of it. Old log-probs are those before the first optimizer step.

    Raises:
        UserError: rewards, log-probs, the loss or a gradient are not finite; that optimizer step is not taken, earlier
            ones of the batch are.
        RuntimeError: other weights than the learner's, or than those `ahead` steps before, drew a rollout.
    """
    passes: Iterable[Pass] = _passes(learner, groups, config, ahead)
    if config.optimizer_steps > 1:  # old log-probs come before the first of them
        passes = list(passes)
    signals: list[Signal] = []
    updates: list[list[Mapping[str, torch.Tensor]]] = []  # metrics of each pass in each optimizer step
    for _ in range(config.updates_per_batch):
        for i, part in enumerate(passes):
            if i % learner.micro_batches == 0:
                updates.append([])
            log_probs_GT, entropy_GT = log_probs_and_entropy(learner, part.samples.rollout, config)
            if i == len(signals):
                signals.append(_signal(learner, part, (log_probs_GT.detach(), entropy_GT.detach()), config))
            loss, metrics = signals[i].loss(log_probs_GT, entropy_GT, config)
            updates[-1].append(metrics)
            learner.backward(loss, partial(_evidence, part.samples, log_probs_GT, part.first))
    measured = combined([signal.metrics for signal in signals])
    return _over_updates(updates, config.minibatches) | measured | learner.finish_step()


@dataclass(frozen=True)
class Pass:
    """Samples that go through the learner together: a group, or `learner.micro_batch` of it."""

    samples: ScoredRollout
    first: int  # of them in the group
    advantages: torch.Tensor  # as seen from the whole group, [G]
    collapsed: bool  # whether all rewards of the group are equal
    # Log-probs and entropy before the first update, [G, T]; None: they are those of the pass itself.
    old: tuple[torch.Tensor, torch.Tensor] | None


def _passes(learner: "Learner", groups: Sequence[ScoredRollout], config: AlgorithmConfig, ahead: int) -> Iterator[Pass]:
    for group in groups:
        _require_current(learner, group.rollout, ahead)
        _require_finite(learner, group)
        yield from _passes_of(learner, group, config)


def _passes_of(learner: "Learner", group: ScoredRollout, config: AlgorithmConfig) -> list[Pass]:
    rows = group.rollout.rows(learner.images_per_pass)
    parts = [group.samples(part) for part in rows]
    rewards_G = torch.from_numpy(group.rewards).to(learner.device)
    old: list[tuple[torch.Tensor, torch.Tensor]] = []
    reference_GT = None
    if config.optimizer_steps > 1 or (config.kl.placement == "reward" and group.reference_log_probs is not None):
        old = [log_probs_and_entropy(learner, part.rollout, config, no_grad=True) for part in parts]
    if group.reference_log_probs is not None:
        reference_GT = torch.from_numpy(group.reference_log_probs).to(learner.device)
    old_GT = torch.cat([part_GT for part_GT, _ in old]) if old else None
    advantages_G = advantages_with_kl(rewards_G, old_GT, reference_GT, config)
    return [
        Pass(part, where.start, advantages_G[where], no_signal(rewards_G), old[i] if old else None)
        for i, (part, where) in enumerate(zip(parts, rows, strict=True))
    ]


@dataclass(frozen=True)
class Signal:
    """What a pass says to all updates on its batch."""

    old: torch.Tensor  # log-probs before the first update, [G, T]
    reference: torch.Tensor | None  # log-probs, [G, T]
    advantages: torch.Tensor  # [G]
    weights: torch.Tensor | None  # of the rollout correction, [G, T] or [G, 1]
    metrics: Mapping[str, torch.Tensor]

    def loss(
        self, log_probs_GT: torch.Tensor, entropy_GT: torch.Tensor, config: AlgorithmConfig
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See grpo_loss."""
        return grpo_loss(log_probs_GT, self.old, self.reference, self.advantages, config, self.weights, entropy_GT)


def _signal(
    learner: "Learner", part: Pass, first: tuple[torch.Tensor, torch.Tensor], config: AlgorithmConfig
) -> Signal:
    """`first`: log-probs and entropy of the part's first pass, which are the old ones where it has no others."""
    (old_GT, entropy_GT), samples = part.old or first, part.samples
    reference = samples.reference_log_probs
    behaviour_GT = torch.from_numpy(samples.rollout.log_probs).to(old_GT)
    weights, metrics = correction_weights(old_GT, behaviour_GT, config.correction)
    metrics |= _mismatch(old_GT, behaviour_GT)
    metrics |= {
        "entropy": entropy_GT.mean(),
        "zero_advantage_groups": torch.tensor(float(part.collapsed)),
        "staleness": torch.tensor(float(learner.step - samples.rollout.weight_version)),
    }
    reference_GT = None if reference is None else torch.from_numpy(reference).to(old_GT)
    return Signal(old_GT, reference_GT, part.advantages, weights, metrics)


def _over_updates(updates: Sequence[Sequence[Mapping[str, torch.Tensor]]], minibatches: int) -> dict[str, float]:
    """What the first pass over all groups found, with the ratios of the last update and what later ones clipped.

    In the first update all ratios are 1 by construction, and nothing is clipped. `first_ratio_*` say that it is so.
    """
    every = combined([row for rows in updates[:minibatches] for row in rows])
    first, last = combined(updates[0]), combined(updates[-1])
    metrics = {name: value for name, value in every.items() if name not in CLIPPED}
    if later := [row for rows in updates[1:] for row in rows]:
        metrics |= {f"first_{name}": first[name] for name in RATIOS} | {name: last[name] for name in RATIOS}
        metrics |= {name: value for name, value in combined(later).items() if name in CLIPPED}
    return metrics


def log_probs_and_entropy(
    learner: "Learner", rollout: Rollout, config: AlgorithmConfig, no_grad: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a rollout's codes under the learner's policy, float32 [G, T] both; see `rollout_log_probs_and_entropy`."""
    gradients = config.unconditional_gradient, config.entropy_bonus > 0
    with torch.set_grad_enabled(not no_grad):
        return learner.forward(rollout_log_probs_and_entropy, rollout, learner.layout, *gradients)


def _mismatch(log_probs_GT: torch.Tensor, behaviour_GT: torch.Tensor) -> dict[str, torch.Tensor]:
    """How far engine and learner are apart."""
    difference_N = (log_probs_GT - behaviour_GT).abs().flatten()
    return {
        "mismatch_max": difference_N.max(),
        "mismatch_mean": difference_N.mean(),
        "mismatch_p99": difference_N.kthvalue(math.ceil(0.99 * len(difference_N))).values,
    }


def _require_current(learner: "Learner", rollout: Rollout, ahead: int) -> None:
    if not learner.step - ahead <= rollout.weight_version <= learner.step:
        raise RuntimeError(
            f"step {learner.step + 1}: the rollout of prompt {rollout.prompt.text!r} has weights of step "
            f"{rollout.weight_version}, expected step {learner.step}" + (f", or {ahead} before" if ahead else "")
        )


def _require_finite(learner: "Learner", group: ScoredRollout) -> None:
    for name, values in (
        ("the reward", group.rewards),
        ("the behaviour log-prob", group.rollout.log_probs),
        ("the reference log-prob", group.reference_log_probs),
    ):
        if values is not None and not np.isfinite(values).all():
            quantity = f"{name} {values[~np.isfinite(values)][0]}"
            raise refusal(learner.run, learner.step + 1, quantity, _evidence(group))


def _evidence(group: ScoredRollout, log_probs_GT: torch.Tensor | None = None, first: int = 0) -> Evidence:
    values = {
        "rewards": group.rewards,
        "behaviour_log_probs": group.rollout.log_probs,
    }
    if group.reference_log_probs is not None:
        values["reference_log_probs"] = group.reference_log_probs
    if log_probs_GT is not None:
        values["log_probs"] = log_probs_GT.detach().cpu().numpy()
    return group_evidence(group.rollout, values, first)
