"""A reward model from human labels: a small head on frozen CLIP features (Lee et al., arXiv 2302.12192).

The labels say of images whether they are good for their prompts. The head learns them (squared error), and to tell the
prompt of a good image from wrong ones, which have a colour, a number or a relation exchanged.
"""

from simplear_rl.cli import read_command_line
from simplear_rl.config.reward_model import HeadTrainingConfig

EXAMPLES = """\
  python -m simplear_rl.reward_model images=labelled labels=labelled/good.jsonl output=rewards/human
  python -m simplear_rl.grpo "reward.models=[{{type: clip_head, path: rewards/human}}]\""""

if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    command_line = read_command_line(HeadTrainingConfig, "reward_model", EXAMPLES, on_ray=False)

from functools import partial

import numpy as np
import torch

from simplear_rl.algorithms.reward_loss import reward_loss
from simplear_rl.benchmarks.benchmark import open_image
from simplear_rl.data.perturbed import perturbed
from simplear_rl.data.prompts import PromptRow, read_rows
from simplear_rl.device import default_device
from simplear_rl.errors import UserError, all_faults
from simplear_rl.files import require_there, require_writable
from simplear_rl.rewards.clip import ClipReward
from simplear_rl.rewards.clip_head import Head, save_reward
from simplear_rl.rewards.files import reward_checks
from simplear_rl.run.lock import locked


@locked("output")
def reward_model(config: HeadTrainingConfig) -> None:
    """Train the head and write it to `output`.

    Raises:
        UserError: an input is missing, or a row of the labels is bad; names all of them.
    """
    all_faults(*(partial(require_there, path) for path in config.inputs), *reward_checks([config.clip]))
    require_writable(config.output, "output")
    rows = read_rows(config.labels)
    labels_N = torch.tensor(_checked(config, rows))
    clip = ClipReward(config.clip, default_device())
    clip.check([row.text for row in rows])
    images_ND = _image_features(config, rows, clip)
    texts_NPD = _text_features(config, rows, clip)
    torch.manual_seed(config.seed)
    order = np.random.default_rng(config.seed).permutation(len(rows))
    held_out, shown = np.split(order, [round(config.validation * len(rows))])
    head = Head(images_ND.shape[-1], config.hidden).to(images_ND.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate)
    for step in range(config.steps):
        batch = np.random.default_rng((config.seed, step)).choice(shown, min(config.batch_size, len(shown)), False)
        optimizer.zero_grad()
        reward_loss(_rewards(head, images_ND, texts_NPD, batch), labels_N[batch], config.classification).backward()
        optimizer.step()
    measured = _measured(head, images_ND, texts_NPD, labels_N, held_out) if len(held_out) else {}
    save_reward(config.output, head, config.clip, measured)
    print(f"{len(shown)} images learned, {len(held_out)} measured: {measured}: {config.output}")


def _checked(config: HeadTrainingConfig, rows: list[PromptRow]) -> list[float]:
    """The labels. Raises UserError."""
    bad, labels = [], []
    for number, row in enumerate(rows, start=1):
        file, good = row.columns.get("file"), row.columns.get("good")
        if not isinstance(file, str) or not (config.images / file).is_file():
            bad.append(f"row {number}: `file`: expected an image below {config.images}, found {file!r}")
        elif str(good).lower() not in ("0", "1", "true", "false", "0.0", "1.0"):
            bad.append(f"row {number}: `good`: expected 1 or 0, found {good!r}")
        else:
            labels.append(float(str(good).lower() in ("1", "true", "1.0")))
    if bad:
        more = [f"{len(bad) - 20} more"] if len(bad) > 20 else []
        raise UserError("\n".join(f"{config.labels}: {line}" for line in [*bad[:20], *more]))
    return labels


def _image_features(config: HeadTrainingConfig, rows: list[PromptRow], clip: ClipReward) -> torch.Tensor:
    files = [config.images / str(row.columns["file"]) for row in rows]
    pixels = (np.asarray(open_image(file).convert("RGB")) for file in files)
    return torch.cat([clip.image_features(image[None]) for image in pixels])


def _text_features(config: HeadTrainingConfig, rows: list[PromptRow], clip: ClipReward) -> torch.Tensor:
    """Of each image's own prompt and of wrong ones, [N, 1 + wrong_prompts, D]."""
    texts = sorted({row.text for row in rows})
    random, prompts = np.random.default_rng((config.seed, 1)), []
    for row in rows:
        try:
            prompts += [row.text, *perturbed(row.text, config.wrong_prompts, texts, random)]
        except ValueError as error:
            raise UserError(f"{config.labels}: {error}; lower wrong_prompts") from None
    return clip.text_features(prompts).view(len(rows), 1 + config.wrong_prompts, -1)


def _rewards(head: Head, images_ND: torch.Tensor, texts_NPD: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    texts_BPD = texts_NPD[rows]
    return head(images_ND[rows].unsqueeze(1).expand_as(texts_BPD), texts_BPD)


@torch.no_grad()
def _measured(
    head: Head, images_ND: torch.Tensor, texts_NPD: torch.Tensor, labels_N: torch.Tensor, rows: np.ndarray
) -> dict[str, float]:
    """On images that the head has not learned: squared error, share of labels told, and of own prompts found."""
    rewards_BP, labels_B = _rewards(head, images_ND, texts_NPD, rows).cpu(), labels_N[rows]
    own_B, good_B = rewards_BP[:, 0], labels_B == 1
    measured = {
        "squared_error": float((own_B - labels_B).square().mean()),
        "accuracy": float(((own_B > 0.5) == good_B).float().mean()),
    }
    if good_B.any():
        measured["prompts_found"] = float((rewards_BP[good_B].argmax(1) == 0).float().mean())
    return measured


if __name__ == "__main__":
    command_line.run(reward_model)
