"""What GRPO logs of its rewards."""

import numpy as np


def reward_metrics(groups: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Mean of each reward model and of their weighted sum over all samples, and the spread that GRPO learns from."""
    totals = np.stack([group["total"] for group in groups])
    models = {f"reward_{name}": float(np.mean([g[name] for g in groups])) for name in groups[0] if name != "total"}
    spread = float(totals.std(axis=1).mean())
    return models | {"reward": float(totals.mean()), "reward_std_in_group": spread, "samples": float(totals.size)}
