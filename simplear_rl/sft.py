"""Supervised fine-tuning: pretraining's loss and loop, on curated data, from the pretrained policy."""

from simplear_rl.cli import read_command_line
from simplear_rl.config.stages import SupervisedConfig

if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    command_line = read_command_line(SupervisedConfig, "sft", dry_run=True)

from simplear_rl import pretrain
from simplear_rl.plan.dry_run import plan_supervised


def train(config: SupervisedConfig) -> None:
    """Run the stage to its last step, continuing from its last checkpoint if there is one."""
    pretrain.train(config, name="sft", before={"pretrain": pretrain.train})


STAGES = {"pretrain": pretrain.train, "sft": train}  # what comes before GRPO, in this order


if __name__ == "__main__":
    command_line.run(train, dry_run=plan_supervised)
