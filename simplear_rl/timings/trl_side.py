"""TRL's half of grpo_vs_trl.py, which runs it in TRL's environment: GRPOTrainer with the rewards of a configuration.

Prints the seconds of each step as JSON. TRL draws from the whole vocabulary; ids that are no codes become code 0.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig
from simplear_rl.data.prompts import read_prompts
from simplear_rl.policy.vocabulary import read_encoder, read_layout
from simplear_rl.rewards.scorer import RewardScorer


class Clock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """See TrainerCallback."""
        self.ends.append(time.monotonic())


def main() -> None:
    """Arguments: threads, bf16 or fp32, folder for TRL's files, overrides of the configuration."""
    threads, precision, output, *overrides = sys.argv[1:]
    torch.set_num_threads(int(threads))
    config = load_config(GrpoConfig, CONFIGS / "shapes" / "grpo.yaml", overrides)
    layout, encode = read_layout(config.start), read_encoder(config.start, config.rollout.engine.max_prompt_tokens)
    scorer = RewardScorer(config.reward, config.tokenizer, layout)

    def rewards(prompts: list[str], completion_ids: list[list[int]], caption: list[str], **_: Any) -> list[float]:
        codes_BT = np.array(completion_ids) - layout.visual_offset
        codes_BT[(codes_BT < 0) | (codes_BT >= layout.codebook_size)] = 0
        images = scorer.tokenizer.decode(codes_BT, layout.rows, layout.columns)
        return scorer.models.score(images, caption, [{}] * len(images)).total.tolist()

    tokenizer = AutoTokenizer.from_pretrained(config.start, padding_side="left")
    rows = [
        {"prompt": tokenizer.decode(encode(text)), "caption": text} for text in read_prompts(config.prompts, encode)
    ]
    rollout, learner, algorithm = config.rollout, config.learner, config.algorithm
    images = rollout.prompts_per_step * rollout.samples_per_prompt
    assert learner.micro_batch  # grpo_vs_trl sets it
    clock = Clock()
    GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(config.start, dtype=torch.float32),
        reward_funcs=[rewards],
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
        args=GRPOConfig(
            output_dir=str(Path(output)),
            per_device_train_batch_size=learner.micro_batch,
            gradient_accumulation_steps=images // learner.micro_batch,
            num_generations=rollout.samples_per_prompt,
            max_completion_length=layout.tokens,
            generation_kwargs={"min_new_tokens": layout.tokens},
            temperature=rollout.temperature,
            top_k=0,
            beta=algorithm.kl.beta,
            scale_rewards="none",
            loss_type="grpo",
            max_steps=config.steps,
            learning_rate=learner.optimizer.learning_rate,
            lr_scheduler_type="constant",
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=precision == "bf16",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
    ).train()
    print(json.dumps(np.diff(clock.ends).tolist()))


if __name__ == "__main__":
    main()
