"""What people said of images, and the CLIP features of these that a reward model learns from (arXiv 2302.12192)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import torch

from simplear_rl.config.reward_model import HeadTrainingConfig
from simplear_rl.data.perturbed import perturbed
from simplear_rl.data.prompts import PromptRow, read_rows
from simplear_rl.errors import UserError, first_of
from simplear_rl.rewards.clip import ClipReward
from simplear_rl.rewards.clip_head import Head
from simplear_rl.rewards.pictures import damage, read_pixels

GOOD = {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0}


@dataclass(frozen=True)
class LabelledImage:
    """An image, the prompt that it was drawn for, and whether it is good for that: 1 or 0."""

    file: Path
    prompt: str
    good: float


def read_labels(labels: Path, images: Path) -> list[LabelledImage]:
    """The labels of images below the folder `images`.

    A row has either `file` and `good`, or a pair as `python -m simplear_rl.label` writes it: of that the better image
    is good and the other one is not. A tie says of neither which it is, nor does a pair without a label: these are left
    out, and their number is said.

    Raises:
        UserError: rows are bad, or images cannot be read; names them.
    """
    labelled, faults, left_out = list[LabelledImage](), list[str](), 0
    for number, row in enumerate(read_rows(labels), start=1):
        try:
            judged = _judged(row)
            left_out += not judged
            labelled += [LabelledImage(_image(images, row, key), row.text, good) for key, good in judged.items()]
        except ValueError as error:
            faults.append(f"{labels}: row {number}: {error}")
    if faults := [*faults, *damage(image.file for image in labelled).values()]:
        raise UserError("\n".join(first_of(faults)))
    if left_out:
        print(f"{labels}: {left_out} ties or pairs without a label are left out")
    if not labelled:
        raise UserError(f"{labels}: expected labels of images, found ties or pairs without a label alone")
    return labelled


def _judged(row: PromptRow) -> dict[str, float]:
    """The columns of a row with images, and whether these are good. Raises ValueError."""
    columns = row.columns
    if "jpg_0" in columns and "jpg_1" in columns:
        if GOOD.get(str(columns.get("has_label")).lower()) == 0:
            return {}
        found = columns.get("label_0"), columns.get("label_1")
        try:
            left, right = (float(str(label)) for label in found)
            if not (isfinite(left) and isfinite(right)):
                raise ValueError
        except ValueError:
            raise ValueError(f"`label_0`, `label_1`: expected numbers, found {found[0]!r}, {found[1]!r}") from None
        if left != right and columns["jpg_0"] == columns["jpg_1"]:
            raise ValueError(f"`jpg_0`, `jpg_1`: expected two images, found {columns['jpg_0']!r} twice")
        return {} if left == right else {"jpg_0": float(left > right), "jpg_1": float(right > left)}
    good = str(columns.get("good")).lower()
    if good not in GOOD:
        raise ValueError(f"`good`: expected 1 or 0, found {columns.get('good')!r}")
    return {"file": GOOD[good]}


def _image(images: Path, row: PromptRow, column: str) -> Path:
    """Raises ValueError."""
    file = row.columns.get(column)
    if not isinstance(file, str) or not os.path.isfile(images / file):  # Path.is_file raises on a name too long
        raise ValueError(f"`{column}`: expected an image below {images}, found {file!r}")
    return images / file


def split(labelled: Sequence[LabelledImage], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the labels that are only measured on, and of those that are learned from.

    `share` is that of the images: all labels of an image go to one side.
    """
    labels: dict[Path, list[int]] = {}
    for i, image in enumerate(labelled):
        labels.setdefault(image.file, []).append(i)
    of_images = list(labels.values())
    order = np.random.default_rng(seed).permutation(len(of_images))
    places = [[i for image in part for i in of_images[image]] for part in np.split(order, [round(share * len(order))])]
    return np.array(places[0], int), np.array(places[1], int)


class LabelledFeatures:
    """CLIP features of labelled images [N, D], and of each one's own prompt and of wrong ones [N, 1 + wrong, D].

    Raises:
        UserError: a prompt has too few wrong ones.
    """

    def __init__(self, config: HeadTrainingConfig, labelled: list[LabelledImage], clip: ClipReward):
        pixels = (read_pixels(image.file) for image in labelled)
        self.images_ND = torch.cat([clip.image_features(image[None]) for image in pixels])
        self.labels_N = torch.tensor([image.good for image in labelled], device=self.images_ND.device)
        texts = sorted({image.prompt for image in labelled})
        random, prompts = np.random.default_rng((config.seed, 1)), list[str]()
        for image in labelled:
            try:
                prompts += [image.prompt, *perturbed(image.prompt, config.wrong_prompts, texts, random)]
            except ValueError as error:
                raise UserError(f"{config.labels}: {error}; lower wrong_prompts") from None
        self.texts_NPD = clip.text_features(prompts).view(len(labelled), 1 + config.wrong_prompts, -1)

    def rewards(self, head: Head, rows: np.ndarray) -> torch.Tensor:
        """What a head says of some images with all their prompts, [B, 1 + wrong]."""
        texts_BPD = self.texts_NPD[rows]
        return head(self.images_ND[rows].unsqueeze(1).expand_as(texts_BPD), texts_BPD)

    @torch.no_grad()
    def measured(self, head: Head, rows: np.ndarray) -> dict[str, float]:
        """Squared error, share of labels told, and share of good images whose own prompt is found."""
        rewards_BP, labels_B = self.rewards(head, rows), self.labels_N[rows]
        own_B, good_B = rewards_BP[:, 0], labels_B == 1
        measured = {
            "squared_error": float((own_B - labels_B).square().mean()),
            "accuracy": float(((own_B > 0.5) == good_B).float().mean()),
        }
        if good_B.any():
            measured["prompts_found"] = float((rewards_BP[good_B].argmax(1) == 0).float().mean())
        return measured
