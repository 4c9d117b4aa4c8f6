"""What one GRPO step takes, phase by phase: the plain classes one after the other, random weights, no Ray.

  python -m simplear_rl.timings.step --policy simplear-0.5b --resolution 1024 --prompts 7 --samples 4
  python -m simplear_rl.timings.step --policy 5m --resolution 256 --prompts 2 --samples 4 --clip ViT-B-32

Beside each phase stands what the plan of time says (--dry-run). With --output FILE the figures go to a file that
replaces what the plan assumes: plan.measured=FILE, or --measured FILE here. Decoding pictures from codes is timed where
a visual tokenizer is named (--tokenizer).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from simplear_rl.cli import exit_on_user_error
from simplear_rl.config.stages import GrpoConfig
from simplear_rl.device import default_device
from simplear_rl.files import write_text
from simplear_rl.gpus import GPUS, gpu_name
from simplear_rl.learning import policy_gradient
from simplear_rl.learning.flops import throughput
from simplear_rl.learning.learner import Learner
from simplear_rl.plan.memory import grpo_memory
from simplear_rl.plan.speed import Measured, Speed, read_measured
from simplear_rl.plan.time import Crowding, grpo_step
from simplear_rl.policy.reference import ReferencePolicy
from simplear_rl.policy.rollouts import Draw, Prompt, Rollout, ScoredRollout
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import read_encoder
from simplear_rl.rollout.capacity import GIB, context_cache
from simplear_rl.rollout.engine import build_engine
from simplear_rl.timings.device import measure_device, synchronize
from simplear_rl.timings.policies import NAMES, PROMPT, PUBLISHED, sizes_of, write_policy
from simplear_rl.tokenizers.cosmos import CosmosTokenizer


class Clock:
    """Times phases and prints them as they come, beside what was planned."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.planned: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def __call__(self, phase: str, run: Callable[[], Any]) -> Any:
        """What the last run returns. The first one, which compiles, captures and allocates, does not count."""
        run()
        if default_device() == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(self.repeats):
            synchronize()
            start = time.perf_counter()
            result = run()
            synchronize()
            seconds.append(time.perf_counter() - start)
        self.seconds[phase] = min(seconds)  # others on the machine only make a run slower
        planned = f"  planned {self.planned[phase]:8.3f} s" if phase in self.planned else ""
        peak = f"  {torch.cuda.max_memory_allocated() / GIB:.1f} GiB" if default_device() == "cuda" else ""
        print(f"{phase:10s} {self.seconds[phase]:8.3f} s{planned}{peak}", flush=True)
        return result


class Step:
    """The phases. What one needs is gone when the next one begins."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.clock = options, folder, Clock(options.repeats)
        self.decoder = sizes_of(options.policy, options.resolution)
        self.images = options.prompts * options.samples
        self.contexts = self.images * (1 if options.guidance_scale == 1 else 2)
        self.device = default_device()
        write_policy(folder / "policy", self.decoder)
        self.config = self._config()

    def _config(self) -> GrpoConfig:
        options, dtype = self.options, "bfloat16" if self.device == "cuda" else "float32"
        engine: dict[str, Any] = {
            "type": options.engine,
            "dtype": dtype,
            "max_concurrent": self.contexts,
            "max_prompt_tokens": len(read_encoder(self.folder / "policy")(PROMPT)),
        }
        rollout = {
            "engine": engine,
            "prompts_per_step": options.prompts,
            "samples_per_prompt": options.samples,
            "guidance_scale": options.guidance_scale,
        }
        learner = {
            "zero_stage": 1,
            "dtype": dtype,
            "activation_checkpointing": options.policy in PUBLISHED,
            "optimizer": {"learning_rate": 1e-5},
        }
        reward = {"type": "clip", "model": options.clip, "weights": "none", "dtype": dtype}
        config = GrpoConfig.model_validate(
            {name: self.folder / name for name in ("root", "tokenizer", "run", "start", "prompts")}
            | {"world": None if options.tokenizer else "shapes", "steps": 100, "checkpoint_every": 100}
            | {"rollout": rollout, "learner": learner, "reward": {"models": [reward]}}
        )
        cache = 1.1 * (self.contexts + 1) * context_cache(self.decoder, config.rollout.engine) / GIB
        engine["kv_cache_gib"] = cache
        return config.model_copy(update={"rollout": type(config.rollout).model_validate(rollout)})

    def plan(self, speed: Speed) -> dict[str, float]:
        """Seconds that the plan of time says, by phase."""
        step = grpo_step(self.config, self.decoder, lambda _: speed, Crowding({}, scoring_shared=True))
        return {phase: step.of(phase) for phase in step.phases}

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
        engine = build_engine(self.folder / "policy", self.config.rollout.engine)
        prompts = [Prompt(i, PROMPT) for i in range(self.options.prompts)]
        sampling = Sampling(guidance_scale=self.options.guidance_scale)
        draw = Draw(prompts, self.options.samples, 0, 0, sampling)
        groups = self.clock("rollout", lambda: list(engine.generate(draw)))
        each = 1e3 * self.clock.seconds["rollout"] / self.decoder.tokens
        print(f"           {each:.2f} ms a token, {self.images} images")
        return groups

    def pictures(self, codes_BT: np.ndarray) -> None:
        """Pixels of the codes."""
        tokenizer, side = CosmosTokenizer(self.options.tokenizer, self.device), int(self.decoder.tokens**0.5)
        self.clock("pictures", lambda: tokenizer.decode(codes_BT, side, side))

    @torch.no_grad()
    def reward(self) -> None:
        """Image features of the reward network, a group at a time as in a run."""
        precision, dtype = ("bf16", torch.bfloat16) if self.device == "cuda" else ("fp32", torch.float32)
        clip = open_clip.create_model(self.options.clip, pretrained=None, precision=precision, device=self.device)
        size = clip.visual.image_size[0]
        pixels = torch.randn(self.options.samples, 3, size, size, device=self.device, dtype=dtype)
        self.clock("reward", lambda: [clip.eval().encode_image(pixels) for _ in range(self.options.prompts)])

    def reference(self, groups: list[Rollout]) -> list[np.ndarray]:
        """Log-probs under the frozen policy."""
        reference = ReferencePolicy(self.folder / "policy", self.config.learner.dtype)
        return self.clock("reference", lambda: reference.log_probs(groups))

    def update(self, groups: list[Rollout], compared: list[np.ndarray]) -> None:
        """Forward, backward, optimizer step; then the weights on their way to the engine, with their checksum."""
        config = self.config.learner
        learner = Learner(config, self.folder / "policy", 100, len(groups), run=self.folder)
        rewards = np.random.default_rng(0).random((len(groups), self.options.samples), dtype=np.float32)

        def update() -> None:
            # As if the current weights had drawn them: the learner takes no others.
            drawn = [replace(group, weight_version=learner.step) for group in groups]
            scored = [ScoredRollout(*group) for group in zip(drawn, rewards, compared, strict=True)]
            policy_gradient.update(learner, scored, self.config.algorithm)

        self.clock("update", update)
        prompt = self.config.rollout.engine.max_prompt_tokens
        lengths = np.full(self.contexts, self.decoder.tokens + prompt)
        used = throughput(learner.size, lengths, self.clock.seconds["update"], learner.peak_flops)
        print("           " + ", ".join(f"{name} {value:,.3g}" for name, value in used.items()))
        planned = grpo_memory(self.decoder, config, self.options.samples, self.contexts > self.images, prompt)
        print(f"           --dry-run plans {sum(planned.values()) / GIB:.1f} GiB")
        self.clock("weights", learner.weights)


def run(options: argparse.Namespace, folder: Path) -> None:
    """Time the phases, print them, and write the file if one is asked for."""
    found = measure_device()
    name = torch.cuda.get_device_name() if default_device() == "cuda" else "CPU"
    print(f"{name}: " + ", ".join(f"{what} {value:.3g}" for what, value in found.items()))
    measured = Measured(
        name=name,
        gpu=name != "CPU",
        threads=torch.get_num_threads(),
        command=" ".join(sys.argv[1:]),
        seconds={},
        factors={},
        **found,
    )
    known = gpu_name(name)
    assumed = Speed(GPUS[known]) if known else measured.speed()
    step = Step(options, folder)
    step.clock.planned = step.plan(read_measured(options.measured).speed() if options.measured else assumed)
    seconds = step.run()
    both = [phase for phase in seconds if phase in step.clock.planned]
    planned = sum(step.clock.planned[phase] for phase in both)
    print(f"{'step':10s} {sum(seconds.values()):8.3f} s  planned {planned:8.3f} s, the phases one after the other")
    if options.output:
        without = step.plan(measured.speed())
        factors = {phase: seconds[phase] / without[phase] for phase in both}
        whole = measured.model_copy(update={"seconds": seconds, "factors": factors})
        write_text(options.output, whole.model_dump_json(indent=2) + "\n")


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=NAMES, default="simplear-0.5b")
    parser.add_argument("--resolution", type=int, default=1024, help="pixels of a side; a code is 16 x 16")
    parser.add_argument("--prompts", type=int, default=7)
    parser.add_argument("--samples", type=int, default=4, help="images a prompt")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="1 is unguided")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--clip", default="ViT-H-14", help="reward network of open_clip, random weights")
    parser.add_argument("--tokenizer", type=Path, help="visual tokenizer folder, to time decoding pictures as well")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each phase after the first; the fastest counts")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="plan by the figures of another run's --output")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    return parser.parse_args(arguments)


def main() -> None:
    """Print seconds per phase and their sum."""
    options = read_options()
    with tempfile.TemporaryDirectory() as folder:
        exit_on_user_error("timings.step", lambda: run(options, Path(folder)))


if __name__ == "__main__":
    main()
