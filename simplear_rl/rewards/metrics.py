"""What GRPO logs of its rewards."""

import numpy as np


def reward_metrics(groups: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Over all samples: mean and spread of each reward model, mean of their weighted sum; the spread GRPO learns from.

    `truncated_prompts` counts those of which a reward model read only the beginning; `diversity` is the mean over the
    groups, where there is one.

    Args:
        groups: of each prompt, the samples' rewards [G] by model, and what RewardScorer.score adds to them.
    """
    rewards = {name: np.stack([group[name] for group in groups]) for name in groups[0]}
    total, truncated, diversity = rewards.pop("total"), rewards.pop("truncated"), rewards.pop("diversity", None)
    metrics = {f"reward_{name}": float(values.mean()) for name, values in rewards.items()}
    metrics |= {f"reward_{name}_std": float(values.std()) for name, values in rewards.items()}
    spread = float(total.std(axis=1).mean())
    metrics |= {"truncated_prompts": float(truncated.any(axis=1).sum())}
    metrics |= {} if diversity is None else {"diversity": float(diversity.mean())}
    return metrics | {"reward": float(total.mean()), "reward_std_in_group": spread, "samples": float(total.size)}
