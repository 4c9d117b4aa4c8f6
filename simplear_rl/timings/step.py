"""What one GRPO step takes, phase by phase: the plain classes one after the other, random weights, no Ray.

  python -m simplear_rl.timings.step --policy simplear-0.5b --resolution 1024 --prompts 7 --samples 4
  python -m simplear_rl.timings.step --policy 5m --resolution 256 --prompts 2 --samples 4 --clip ViT-B-32

Decoding pictures from codes is timed where a visual tokenizer is named (--tokenizer).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from simplear_rl.config.learner import AlgorithmConfig, LearnerConfig
from simplear_rl.config.rollout import EngineConfig
from simplear_rl.device import default_device
from simplear_rl.learning import policy_gradient
from simplear_rl.learning.flops import throughput
from simplear_rl.learning.learner import Learner
from simplear_rl.plan.memory import grpo_memory
from simplear_rl.policy.model import random_policy, word_tokenizer
from simplear_rl.policy.reference import ReferencePolicy
from simplear_rl.policy.rollouts import Draw, Prompt, Rollout, ScoredRollout
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.sizes import Decoder, published
from simplear_rl.rollout.capacity import GIB, context_cache
from simplear_rl.rollout.engine import build_engine
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

SMALL = {
    "5m": Decoder(256, 6, 4, 4, 64, 704, 5_000, 4_000, 0),
    "60m": Decoder(768, 10, 12, 12, 64, 2048, 5_000, 4_000, 0),
}
PUBLISHED = ("simplear-0.5b", "simplear-1.5b")


def write_policy(folder: Path, decoder: Decoder) -> None:
    """A random policy of these sizes; all of its text ids are words."""
    side = int(decoder.tokens**0.5)
    random_policy(
        folder,
        word_tokenizer(["a", "red", "circle", *(f"word{i}" for i in range(decoder.vocabulary - decoder.codes - 12))]),
        codebook_size=decoder.codes,
        grid=(side, side),
        prompt_prefix="",
        geometry={
            "hidden_size": decoder.hidden,
            "intermediate_size": decoder.ffn,
            "num_hidden_layers": decoder.layers,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.kv_heads,
            "max_position_embeddings": decoder.tokens + 64,
        },
        seed=0,
    )


class Clock:
    """Times phases and prints them as they come."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, phase: str, run: Callable[[], Any]) -> Any:
        """What the second of two runs returns: the first one compiles, captures and allocates."""
        run()
        if default_device() == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start, peak = time.perf_counter(), ""
        result = run()
        if default_device() == "cuda":
            torch.cuda.synchronize()
            peak = f"  {torch.cuda.max_memory_allocated() / GIB:.1f} GiB"
        self.seconds[phase] = time.perf_counter() - start
        print(f"{phase:10s} {self.seconds[phase]:8.3f} s{peak}", flush=True)
        return result


class Step:
    """The phases. What one needs is gone when the next one begins."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.clock = options, folder, Clock()
        self.tokens = (options.resolution // 16) ** 2
        self.full_size = options.policy in PUBLISHED
        small = replace(SMALL.get(options.policy, SMALL["5m"]), tokens=self.tokens)
        self.decoder = published(options.policy, options.resolution) if self.full_size else small
        self.images = options.prompts * options.samples
        self.contexts = self.images * (1 if options.guidance_scale == 1 else 2)
        self.device = default_device()
        self.dtype: Any = "bfloat16" if self.device == "cuda" else "float32"
        write_policy(folder / "policy", self.decoder)

    def run(self) -> dict[str, float]:
        """Seconds of each phase."""
        groups = self.rollout()
        if self.options.tokenizer:
            self.pictures(np.concatenate([group.codes for group in groups]))
        self.reward()
        self.update(groups, self.reference(groups))
        return self.clock.seconds

    def rollout(self) -> list[Rollout]:
        """Draw the images."""
        config = EngineConfig(
            type=self.options.engine, dtype=self.dtype, max_concurrent=self.contexts, max_prompt_tokens=32
        )
        cache = 1.1 * (self.contexts + 1) * context_cache(self.decoder, config) / GIB
        engine = build_engine(self.folder / "policy", config.model_copy(update={"kv_cache_gib": cache}))
        prompts = [Prompt(i, "a red circle") for i in range(self.options.prompts)]
        sampling = Sampling(guidance_scale=self.options.guidance_scale)
        draw = Draw(prompts, self.options.samples, 0, 0, sampling)
        groups = self.clock("rollout", lambda: list(engine.generate(draw)))
        print(f"           {1e3 * self.clock.seconds['rollout'] / self.tokens:.2f} ms a token, {self.images} images")
        return groups

    def pictures(self, codes_BT: np.ndarray) -> None:
        """Pixels of the codes."""
        tokenizer, side = CosmosTokenizer(self.options.tokenizer, self.device), int(self.tokens**0.5)
        self.clock("pictures", lambda: tokenizer.decode(codes_BT, side, side))

    @torch.no_grad()
    def reward(self) -> None:
        """Image features of the reward network."""
        precision = "bf16" if self.device == "cuda" else "fp32"
        clip = open_clip.create_model(self.options.clip, pretrained=None, precision=precision, device=self.device)
        size, dtype = clip.visual.image_size[0], next(clip.parameters()).dtype
        pixels = torch.randn(self.images, 3, size, size, device=self.device, dtype=dtype)
        self.clock("reward", lambda: clip.eval().encode_image(pixels))

    def reference(self, groups: list[Rollout]) -> list[np.ndarray]:
        """Log-probs under the frozen policy."""
        reference = ReferencePolicy(self.folder / "policy", self.dtype)
        return self.clock("reference", lambda: [reference.log_probs(group) for group in groups])

    def update(self, groups: list[Rollout], compared: list[np.ndarray]) -> None:
        """Forward, backward, optimizer step; then the weights on their way to the engine, with their checksum."""
        settings = {"zero_stage": 1, "dtype": self.dtype, "activation_checkpointing": self.full_size}
        config = LearnerConfig.model_validate(settings | {"optimizer": {"learning_rate": 1e-5}})
        learner = Learner(config, self.folder / "policy", 100, len(groups), run=self.folder)
        rewards = np.random.default_rng(0).random((len(groups), self.options.samples), dtype=np.float32)

        def update() -> None:
            # As if the current weights had drawn them: the learner takes no others.
            drawn = [replace(group, weight_version=learner.step) for group in groups]
            scored = [ScoredRollout(*group) for group in zip(drawn, rewards, compared, strict=True)]
            policy_gradient.update(learner, scored, AlgorithmConfig())

        self.clock("update", update)
        lengths = np.full(self.contexts, self.tokens + len(groups[0].prompt_ids))
        used = throughput(learner.size, lengths, self.clock.seconds["update"], learner.peak_flops)
        print("           " + ", ".join(f"{name} {value:,.3g}" for name, value in used.items()))
        planned = grpo_memory(
            self.decoder, config, self.options.samples, self.contexts > self.images, len(groups[0].prompt_ids)
        )
        print(f"           --dry-run plans {sum(planned.values()) / GIB:.1f} GiB")
        self.clock("weights", learner.weights)


def main() -> None:
    """Print seconds per phase and their sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=[*PUBLISHED, *SMALL], default="simplear-0.5b")
    parser.add_argument("--resolution", type=int, default=1024, help="pixels of a side; a code is 16 x 16")
    parser.add_argument("--prompts", type=int, default=7)
    parser.add_argument("--samples", type=int, default=4, help="images a prompt")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="1 is unguided")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--clip", default="ViT-H-14", help="reward network of open_clip, random weights")
    parser.add_argument("--tokenizer", type=Path, help="visual tokenizer folder, to time decoding pictures as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = Step(options, Path(folder)).run()
    print(f"{'step':10s} {sum(seconds.values()):8.3f} s, the phases one after the other")


if __name__ == "__main__":
    main()
