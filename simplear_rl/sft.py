"""Supervised fine-tuning: pretraining's loss and loop, on curated data, from the pretrained policy."""

from simplear_rl import pretrain
from simplear_rl.cli import run_command
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.plan.dry_run import plan_supervised


def train(config: SupervisedConfig) -> None:
    """Run the stage to its last step, continuing from its last checkpoint if there is one."""
    pretrain.train(config, name="sft", before={"pretrain": pretrain.train})


STAGES = {"pretrain": pretrain.train, "sft": train}  # what comes before GRPO, in this order


if __name__ == "__main__":
    run_command(train, SupervisedConfig, "sft", dry_run=plan_supervised)
