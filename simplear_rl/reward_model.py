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
from tqdm import tqdm

from simplear_rl.algorithms.reward_loss import reward_loss
from simplear_rl.device import default_device
from simplear_rl.errors import UserError, all_faults
from simplear_rl.files import require_there, require_writable
from simplear_rl.rewards.clip import ClipReward
from simplear_rl.rewards.clip_head import Head, save_reward
from simplear_rl.rewards.files import reward_checks
from simplear_rl.rewards.human_labels import LabelledFeatures, read_labels, split
from simplear_rl.run.lock import locked


@locked("output")
def reward_model(config: HeadTrainingConfig) -> None:
    """Train the head and write it to `output`.

    Raises:
        UserError: an input is missing, or a row of the labels is bad or its image cannot be read; names all of them.
    """
    all_faults(*(partial(require_there, path) for path in config.inputs), *reward_checks([config.clip]))
    require_writable(config.output, "output")
    labelled = read_labels(config.labels, config.images)
    clip = ClipReward(config.clip, default_device())
    clip.check([image.prompt for image in labelled])
    features = LabelledFeatures(config, labelled, clip)
    torch.manual_seed(config.seed)
    held_out, shown = split(labelled, config.validation, config.seed)
    if not len(shown):
        raise UserError(f"validation ({config.validation:g}): all labels are held out, none is left to learn from")
    head = Head(features.images_ND.shape[-1], config.hidden).to(features.images_ND.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate)
    for step in tqdm(range(config.steps), desc="reward model", unit="step", leave=None):
        batch = np.random.default_rng((config.seed, step)).choice(shown, min(config.batch_size, len(shown)), False)
        optimizer.zero_grad()
        loss = reward_loss(features.rewards(head, batch), features.labels_N[batch], config.classification)
        loss.backward()
        optimizer.step()
    measured = features.measured(head, held_out) if len(held_out) else {}
    save_reward(config.output, head, config.clip, measured)
    print(f"{len(shown)} labels learned, {len(held_out)} measured: {measured}: {config.output}")


if __name__ == "__main__":
    command_line.run(reward_model)
