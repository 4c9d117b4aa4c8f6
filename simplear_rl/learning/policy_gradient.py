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
from simplear_rl.policy.rollouts import Rollout, ScoredRollout, passes
from simplear_rl.run.guards import Evidence, group_evidence, require_finite

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
    A pass has a group, or `learner.micro_batch` samples. Old log-probs are those before the first optimizer step.

    Raises:
        UserError: rewards, log-probs, the loss or a gradient are not finite; that optimizer step is not taken, earlier
            ones of the batch are.
        RuntimeError: other weights than the learner's, or than those `ahead` steps before, drew a rollout.
    """
    parts: Iterable[Pass] = _passes(learner, groups, config, ahead)
    if config.optimizer_steps > 1:  # old log-probs come before the first of them
        parts = list(parts)
    signals: list[Signal] = []
    updates: list[list[Mapping[str, torch.Tensor]]] = []  # metrics of each pass in each optimizer step
    for _ in range(config.updates_per_batch):
        for i, part in enumerate(parts):
            if i % learner.micro_batches == 0:
                updates.append([])
            log_probs_BT, entropy_BT = log_probs_and_entropy(learner, part.parts, config)
            if i == len(signals):
                signals.append(_signal(learner, part, (log_probs_BT.detach(), entropy_BT.detach()), config))
            loss, metrics = signals[i].loss(log_probs_BT, entropy_BT, config)
            updates[-1].append(metrics)
            learner.backward(loss, partial(part.evidence, log_probs_BT))
    measured = combined([signal.metrics for signal in signals])
    return _over_updates(updates, config.minibatches) | measured | learner.finish_step()


@dataclass(frozen=True)
class Pass:
    """Samples that go through the learner together: a group, `learner.micro_batch` of it, or several groups."""

    parts: list[ScoredRollout]  # of one group each
    first: int  # of the samples in their group, where they are part of it
    advantages: torch.Tensor  # as seen from the whole groups, [B]
    collapsed: float  # share of the groups whose rewards are all equal
    # Log-probs and entropy before the first update, [B, T]; None: they are those of the pass itself.
    old: tuple[torch.Tensor, torch.Tensor] | None

    @property
    def reference_log_probs(self) -> np.ndarray | None:
        """[B, T]; None: there is no reference."""
        found = [part.reference_log_probs for part in self.parts if part.reference_log_probs is not None]
        return np.concatenate(found) if found else None

    def evidence(self, log_probs_BT: torch.Tensor) -> Evidence:
        """Of the part that has a log-prob that is not finite, or of the first."""
        split = list(zip(self.parts, log_probs_BT.split([len(part.rewards) for part in self.parts]), strict=True))
        part, log_probs_GT = next((pair for pair in split if not pair[1].isfinite().all()), split[0])
        return _evidence(part, log_probs_GT, self.first)


def _passes(learner: "Learner", groups: Sequence[ScoredRollout], config: AlgorithmConfig, ahead: int) -> Iterator[Pass]:
    samples = len(groups[0].rewards)
    minibatch = len(groups) // config.minibatches
    together = min(minibatch, max(1, (learner.images_per_pass or samples) // samples))
    for first in range(0, len(groups), together):
        taken = [groups[i] for i in range(first, first + together)]
        for group in taken:
            _require_current(learner, group.rollout, ahead)
            _require_finite(learner, group)
        yield from _passes_of(learner, taken, config)


def _passes_of(learner: "Learner", groups: Sequence[ScoredRollout], config: AlgorithmConfig) -> list[Pass]:
    """The passes of groups that go through together, or of a single one."""
    samples, compared = len(groups[0].rewards), groups[0].reference_log_probs is not None
    together = [
        [groups[i].samples(rows) for i, rows in members]
        for members in passes(len(groups), samples, learner.images_per_pass)
    ]
    old: list[tuple[torch.Tensor, torch.Tensor]] = []
    if config.optimizer_steps > 1 or (config.kl.placement == "reward" and compared):
        old = [log_probs_and_entropy(learner, parts, config, no_grad=True) for parts in together]
    before = torch.cat([log_probs_BT for log_probs_BT, _ in old]).split(samples) if old else [None] * len(groups)
    of_groups = [_advantages(learner, *pair, config) for pair in zip(groups, before, strict=True)]
    advantages = torch.cat(of_groups).split([sum(len(part.rewards) for part in parts) for parts in together])
    collapsed = sum(no_signal(torch.from_numpy(group.rewards)) for group in groups) / len(groups)
    size = learner.images_per_pass or samples
    return [
        Pass(parts, i * size % samples, advantages[i], collapsed, old[i] if old else None)
        for i, parts in enumerate(together)
    ]


def _advantages(
    learner: "Learner", group: ScoredRollout, old_GT: torch.Tensor | None, config: AlgorithmConfig
) -> torch.Tensor:
    reference_GT = None
    if group.reference_log_probs is not None:
        reference_GT = torch.from_numpy(group.reference_log_probs).to(learner.device)
    return advantages_with_kl(torch.from_numpy(group.rewards).to(learner.device), old_GT, reference_GT, config)


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
    old_BT, entropy_BT = part.old or first
    behaviour_BT = torch.from_numpy(np.concatenate([scored.rollout.log_probs for scored in part.parts])).to(old_BT)
    weights, metrics = correction_weights(old_BT, behaviour_BT, config.correction)
    metrics |= _mismatch(old_BT, behaviour_BT)
    metrics |= {
        "entropy": entropy_BT.mean(),
        "zero_advantage_groups": torch.tensor(part.collapsed, dtype=torch.float64),
        "staleness": torch.tensor(float(learner.step - part.parts[0].rollout.weight_version)),
    }
    compared = part.reference_log_probs
    reference_BT = None if compared is None else torch.from_numpy(compared).to(old_BT)
    return Signal(old_BT, reference_BT, part.advantages, weights, metrics)


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
    learner: "Learner", parts: Sequence[ScoredRollout], config: AlgorithmConfig, no_grad: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the codes under the learner's policy, float32 [B, T] both; see `rollout_log_probs_and_entropy`."""
    gradients, rollouts = (config.unconditional_gradient, config.entropy_bonus > 0), [part.rollout for part in parts]
    with torch.set_grad_enabled(not no_grad):
        return learner.forward(rollout_log_probs_and_entropy, rollouts, learner.layout, *gradients)


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
    named = {
        "the reward": group.rewards,
        "the behaviour log-prob": group.rollout.log_probs,
        "the reference log-prob": group.reference_log_probs,
    }
    require_finite(learner.run, learner.step + 1, named, lambda: _evidence(group))


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
