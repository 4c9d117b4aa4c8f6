"""What stops a run before a bad step is taken, and what makes it warn."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simplear_rl.config.base import Section
from simplear_rl.config.learner import GuardsConfig
from simplear_rl.config.preference import PreferenceGuardsConfig
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Rollout


@dataclass(frozen=True)
class Evidence:
    """What a pass computed with, for the error that refuses it."""

    about: str  # in words
    name: str  # of its file
    arrays: dict[str, Any]  # NumPy arrays, or what becomes one


def refusal(run: Path | None, step: int, quantity: str, evidence: Evidence) -> UserError:
    """The error that ends a run before the optimizer step of `step`, for `quantity` that is not finite.

    Saves the sample as `failed-step-N/name.npz` in the run's folder; without a run, nothing is saved.
    """
    where = ""
    if run:
        file = run / f"failed-step-{step:06d}" / f"{evidence.name}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **evidence.arrays)
        where = f"; saved as {file}"
    return UserError(
        f"step {step}: {quantity} of {evidence.about}: expected a finite number{where}; "
        "the optimizer step was not taken"
    )


def require_finite(
    run: Path | None, step: int, named: Mapping[str, np.ndarray | None], evidence: Callable[[], Evidence]
) -> None:
    """Raise what `refusal` makes of the first value that is not finite."""
    for name, values in named.items():
        if values is not None and not np.isfinite(values).all():
            raise refusal(run, step, f"{name} {values[~np.isfinite(values)][0]}", evidence())


def group_evidence(rollout: Rollout, values: dict[str, np.ndarray], first: int = 0) -> Evidence:
    """Samples of a prompt's group, from number `first`, with `values` of each ([G] or [G, T]).

    `about` names the first that is not finite.
    """
    finite_G = np.all([np.isfinite(v.reshape(len(v), -1)).all(1) for v in values.values()], axis=0)
    which = f", all {len(finite_G)} samples" + (f" from {first}" if first else "")
    if not finite_G.all():
        which = f", sample {first + int(np.argmin(finite_G))}"
    arrays = {"prompt": rollout.prompt.text, "prompt_ids": rollout.prompt_ids, "codes": rollout.codes}
    about = f"prompt {rollout.prompt.text!r}{which}"
    return Evidence(about, f"prompt-{rollout.prompt.index}", arrays | values)


def narrowing(steps: Sequence[tuple[float, float, float]]) -> float:
    """The share by which both entropy and diversity have fallen while the reward rose; 0 unless all three did so.

    The means over the later half of the steps are compared with those over the earlier half.

    Args:
        steps: reward, entropy and diversity of each.
    """
    half = len(steps) // 2
    reward, *spreads = np.mean(steps[:half], axis=0)
    later_reward, *later_spreads = np.mean(steps[half:], axis=0)
    if later_reward <= reward or min(spreads) <= 0:
        return 0.0
    return max(0.0, 1 - max(later / earlier for earlier, later in zip(spreads, later_spreads, strict=True)))


class Thresholds:
    """Says that a threshold of `guards` is crossed, and not again before it was met."""

    def __init__(self, limits: Section):
        self.limits, self.active = limits, set[str]()

    def crossed(self, step: int, lines: Mapping[str, str]) -> list[str]:
        """Lines to print after a step, of those that say by name which thresholds are crossed now."""
        new = [
            f"step {step}: {line} (guards.{name} is {getattr(self.limits, name):g})"
            for name, line in lines.items()
            if name not in self.active
        ]
        self.active = set(lines)
        return new


class Warnings:
    """Warnings on a GRPO run's metrics, each when its threshold is crossed and not again before it was met."""

    def __init__(self, config: GuardsConfig):
        self.config, self.thresholds = config, Thresholds(config)
        self.collapsed = 0  # steps in a row
        self.steps: deque[tuple[float, float, float]] = deque(maxlen=config.narrowing_window)

    def check(self, step: int, metrics: dict[str, float]) -> list[str]:
        """Lines to print after a step."""
        self.collapsed = self.collapsed + 1 if metrics["zero_advantage_groups"] == 1 else 0
        limits = self.config
        lines = {}
        if metrics.get("kl", 0) > limits.kl_warning:  # without a reference there is none
            lines["kl_warning"] = f"the policy is far from the reference: kl {metrics['kl']:.3g}"
        for name in "mismatch_mean", "mismatch_p99":
            # Of samples that were drawn ahead they contain what the policy has moved.
            if metrics[name] > getattr(limits, f"{name}_warning") and not metrics["staleness"]:
                lines[f"{name}_warning"] = f"rollout and learner disagree: {name} {metrics[name]:.3g}"
        if self.collapsed >= limits.collapsed_groups_warning:
            lines["collapsed_groups_warning"] = f"all rewards of every group were equal for {self.collapsed} steps"
        if "diversity" in metrics:  # of a reward with image features
            self.steps.append((metrics["reward"], metrics["entropy"], metrics["diversity"]))
        fall = narrowing(list(self.steps)) if len(self.steps) == limits.narrowing_window else 0.0
        if fall > limits.narrowing_warning:
            lines["narrowing_warning"] = (
                f"the reward rises while the samples become alike: entropy and diversity fell by {fall:.0%}"
            )
        return self.thresholds.crossed(step, lines)


class PreferenceWarnings:
    """Warnings on the metrics of DPO: its margin can grow while winners become less likely too."""

    def __init__(self, config: PreferenceGuardsConfig):
        self.config, self.thresholds = config, Thresholds(config)

    def check(self, step: int, metrics: dict[str, float]) -> list[str]:
        """Lines to print after a step."""
        lines, gain = {}, metrics.get("winners_gain", 0.0)  # there is none in a step without pairs
        if gain < -self.config.winners_warning:
            lines["winners_warning"] = (
                f"winners are less likely than under the reference: winners_gain {gain:.3g} nats per code; "
                "algorithm.sft holds them up"
            )
        return self.thresholds.crossed(step, lines)
