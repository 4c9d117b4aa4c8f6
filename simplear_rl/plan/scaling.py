"""A table of hours on 1 to 256 GPUs, from the plan of time.

python -m simplear_rl.plan.scaling --policy simplear-0.5b --gpu H100
"""

import argparse

from simplear_rl.cli import exit_on_user_error
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig, SupervisedConfig
from simplear_rl.gpus import GPUS
from simplear_rl.plan.layouts import layouts
from simplear_rl.plan.speed import Speed
from simplear_rl.plan.time import StepTime, supervised_step
from simplear_rl.policy.sizes import PolicySizes, published

NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PER_NODE = 8
STEPS = 395  # of GRPO: what the published curve of rewards shows
PROMPTS, SAMPLES = 7, 4  # of a published step


def supervised_hours(config: SupervisedConfig, decoder: PolicySizes, speed: Speed, gpus: int) -> float:
    """Hours of a stage on so many ranks."""
    data, learner = config.data, config.learner
    counted = config.model_copy(
        update={
            "data": data.model_copy(update={"micro_batch": min(data.micro_batch, data.batch_size // gpus)}),
            "learner": learner.model_copy(update={"actors": learner.actors.model_copy(update={"count": gpus})}),
        }
    )
    step = supervised_step(counted, decoder, speed, nodes=-(-gpus // PER_NODE))
    return config.steps * step.seconds / 3600


def grpo_fastest(
    config: GrpoConfig, decoder: PolicySizes, speed: Speed, gpus: int, prompts: int
) -> tuple[int, StepTime] | None:
    """The quickest layout on at most so many GPUs, one optimizer step a step: how many it has, and its step.

    None where their memory holds none.
    """
    rollout = config.rollout.model_copy(update={"prompts_per_step": prompts, "samples_per_prompt": SAMPLES})
    algorithm = config.algorithm.model_copy(update={"minibatches": 1})
    counted = config.model_copy(update={"rollout": rollout, "algorithm": algorithm})
    found = layouts(counted, decoder, speed, gpus, PER_NODE)
    best = min(found, key=lambda one: (one.step.seconds, one.gpus), default=None)
    return (best.gpus, best.step) if best else None


def print_table(policy: str, gpu: str) -> None:
    """Print the table as Markdown."""
    folder, speed = CONFIGS / policy.replace("-", "_"), Speed(GPUS[gpu])
    pretrain = load_config(SupervisedConfig, folder / "pretrain.yaml", [])
    sft = load_config(SupervisedConfig, folder / "sft.yaml", [])
    grpo = load_config(GrpoConfig, folder / "grpo_1gpu.yaml", [])
    small, large = published(policy, 512), published(policy, 1024)
    grpo_columns = "GRPO, 28 images a step: s | h | GPUs used | 28 images a GPU: s | images/s"
    print(f"| {gpu} | pretraining, h | SFT, h | {grpo_columns} |")
    print("| --- " * 8 + "|")
    for gpus in NUMBERS:
        narrow, wide = "does not fit | | ", "does not fit | "
        if fastest := grpo_fastest(grpo, large, speed, gpus, PROMPTS):
            used, step = fastest
            narrow = f"{step.seconds:.1f} | {STEPS * step.seconds / 3600:.2f} | {used}"
        if fastest := grpo_fastest(grpo, large, speed, gpus, PROMPTS * gpus):
            seconds = fastest[1].seconds
            wide = f"{seconds:.1f} | {PROMPTS * SAMPLES * gpus / seconds:,.3g}"
        supervised = (supervised_hours(*stage, speed, gpus) for stage in ((pretrain, small), (sft, large)))
        print(f"| {gpus} | " + " | ".join(f"{hours:,.3g}" for hours in supervised) + f" | {narrow} | {wide} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=["simplear-0.5b", "simplear-1.5b"], default="simplear-0.5b")
    parser.add_argument("--gpu", choices=list(GPUS), default="H100")
    options = parser.parse_args()
    exit_on_user_error("plan.scaling", lambda: print_table(options.policy, options.gpu))


if __name__ == "__main__":
    main()
