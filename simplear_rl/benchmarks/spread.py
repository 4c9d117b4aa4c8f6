"""The diversity of an evaluation's images, beside its scores: from the features that are kept of each prompt's."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from simplear_rl.algorithms.diversity import diversity, vendi_score
from simplear_rl.errors import UserError
from simplear_rl.files import writing_to

DIVERSITY, VENDI = "diversity", "vendi"
Interval = tuple[float, float]


def spread_names(images_per_prompt: int) -> list[str]:
    """What `spread` has scores of. One image has no pair within its prompt."""
    return [DIVERSITY, VENDI] if images_per_prompt > 1 else [VENDI]


def write_features(output: Path, index: int, features_GD: np.ndarray) -> None:
    """Keep the features of a prompt's images. Raises UserError, see `writing_to`."""
    file = _file(output, index)
    with writing_to(file):
        file.parent.mkdir(exist_ok=True)
        np.save(file, features_GD)


def spread(output: Path, indices: Sequence[int], seed: int = 0) -> tuple[dict[str, float], dict[str, Interval]]:
    """`diversity`, the mean over prompts of the mean pairwise distance of a prompt's images; `vendi` of all images.

    And the 95 % bootstrap interval of the first, over prompts. Prompts of one image have no pair.

    Raises:
        UserError: the features of a prompt are not there, or damaged.
    """
    features = [_read(_file(output, index)) for index in indices]
    scores, intervals = {}, {}
    if distances := [diversity(found) for found in features if len(found) > 1]:
        scores[DIVERSITY] = float(np.mean(distances))
        drawn = np.random.default_rng(seed).choice(distances, (2000, len(distances))).mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        intervals[DIVERSITY] = float(low), float(high)
    scores[VENDI] = vendi_score(torch.cat(features))
    return scores, intervals


def _read(file: Path) -> torch.Tensor:
    try:
        return torch.from_numpy(np.load(file))
    except (OSError, ValueError, EOFError) as error:
        verdict = file.parent.parent / "verdicts" / f"{file.stem}.json"
        raise UserError(f"{file}: cannot be read: {error}; remove {verdict} and start again") from error


def _file(output: Path, index: int) -> Path:
    return output / "features" / f"{index:05d}.npy"
