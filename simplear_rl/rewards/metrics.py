"""What a step logs of its rewards, and what it learns from."""

from collections.abc import Sequence

import numpy as np

from simplear_rl.algorithms.combining import batch_normalised
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Scores


def learned_rewards(scores: Sequence[Scores]) -> list[np.ndarray]:
    """Of each group of a step what the policy learns from, float32 [G]: the total, or the advantages of GDPO.

    Of a group that is left out 0 for all: equal rewards have no advantage.

    Raises:
        UserError: all groups of the step are left out.
    """
    if scores and all(group.error for group in scores):
        raise UserError(f"no group of the step could be scored, all {len(scores)} are left out: {scores[0].error}")
    alone = [values for group in scores if (values := learned_alone(group)) is not None]
    if len(alone) == len(scores):
        return alone
    normalised = iter(batch_normalised([group.learned for group in scores if group.error is None]))
    return [np.zeros_like(g.total) if g.error else next(normalised).astype(np.float32) for g in scores]


def learned_alone(scores: Scores) -> np.ndarray | None:
    """The same of one group, if it does not depend on the others: that of GDPO does."""
    if scores.error:
        return np.zeros_like(scores.total)
    return scores.total.astype(np.float32) if scores.normalised is None else None


def reward_metrics(groups: Sequence[Scores]) -> dict[str, float]:
    """Of each reward model: mean, spread over all samples and in a group, correlation with the total, share clipped.

    And the mean of the total, its spread in a group, and how many groups were left out. `truncated_prompts` counts
    those of which a reward model read only the beginning; `diversity` is the mean over the groups, where there is one.
    The correlation is that within groups, of the deviations from their means; it is left out where it is not defined,
    since a reward or the total is equal for all.
    """
    scored = [group for group in groups if group.error is None]
    totals = np.stack([group.total for group in scored])
    metrics = {}
    for name in scored[0].rewards:
        values = np.stack([group.rewards[name] for group in scored])
        metrics[f"reward_{name}"] = float(values.mean())
        metrics[f"reward_{name}_std"] = float(values.std())
        metrics[f"reward_{name}_std_in_group"] = float(values.std(axis=1).mean())
        if len(scored[0].rewards) > 1 and (correlation := _correlation(values, totals)) is not None:
            metrics[f"reward_{name}_correlation"] = correlation
        if name in scored[0].clipped:
            metrics[f"reward_{name}_clipped"] = float(np.mean([group.clipped[name] for group in scored]))
    if scored[0].diversity is not None:
        metrics["diversity"] = float(np.mean([group.diversity for group in scored]))
    return metrics | {
        "reward": float(totals.mean()),
        "reward_std_in_group": float(totals.std(axis=1).mean()),
        "samples": float(totals.size),
        "skipped_groups": float(len(groups) - len(scored)),
        "truncated_prompts": float(sum(group.truncated for group in scored)),
    }


def _correlation(values: np.ndarray, totals: np.ndarray) -> float | None:
    """Pearson's, of what deviates from the mean of a row, float [groups, G] each; None if a row's mean is all of it."""
    a, b = (part.astype(np.float64) - part.mean(axis=1, keepdims=True, dtype=np.float64) for part in (values, totals))
    product = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / product) if product else None
