"""Do the engines draw what the plain loop draws? In float32, before and after new weights, guided and not.

  python -m simplear_rl.timings.exactness                  every engine that is installed
  python -m simplear_rl.timings.exactness --engines transformers

The plain loop is `sample_codes`: Transformers, one growing cache. Greedy images must be equal. Sampled ones
may differ where a random number lies within rounding of the border between two codes; therefore the log-probs that
came with them are compared with those of one pass over the same codes. The status is 1 if greedy images differ or if
the mean difference of log-probs is above 1e-3. Where images differ, the log-probs of the first codes that do are
compared as well: codes that are equally likely up to rounding explain it.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.device import default_device
from simplear_rl.errors import UserError
from simplear_rl.policy.log_probs import rollout_log_probs
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.rollouts import Draw, Prompt, Rollout
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import read_layout
from simplear_rl.rollout.decode_step import FEW
from simplear_rl.rollout.engine import build_engine
from simplear_rl.rollout.transformers_engine import sample_codes
from simplear_rl.timings.policies import PROMPT, sizes_of, write_policy
from simplear_rl.weights.snapshot import Weights, checksum

IMAGES = 12
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "greedy guided": Sampling(temperature=0, guidance_scale=5.0),
    "sampled": Sampling(),
    "sampled guided": Sampling(guidance_scale=3.0),
}
MEAN = 1e-3  # nats


class Comparison:
    """An engine and the plain loop on one policy."""

    def __init__(self, policy: Path, engine: str, contexts: int):
        config = EngineConfig(type=engine, max_concurrent=contexts, max_prompt_tokens=32, kv_cache_gib=0.5)
        self.engine: Any = build_engine(policy, config)
        model, self.encode = load_policy(policy)
        self.model, self.layout = model.to(default_device()).eval(), read_layout(policy)
        # Prompts of unequal lengths.
        self.prompts = [Prompt(i, " ".join([PROMPT] * (1 + i % 3))) for i in range(IMAGES)]

    @torch.no_grad()
    def __call__(self, sampling: Sampling) -> tuple[int, float, float]:
        """How many images are equal, the mean difference of log-probs, and how far apart the first other codes are."""
        draw = Draw(self.prompts, 1, 0, 0, sampling)
        groups: Sequence[Rollout] = list(self.engine.generate(draw))
        seeds = [(0, 0, prompt.index, 0) for prompt in self.prompts]
        other = self.encode.unconditional(draw)
        contexts = [self.encode(prompt.text) for prompt in self.prompts]
        plain = sample_codes(self.model, contexts, self.layout, seeds, sampling, [other] * IMAGES if other else None)
        pairs = list(zip(groups, plain.cpu().numpy(), strict=True))
        others = [self._first_other(group, row) for group, row in pairs if not np.array_equal(group.codes[0], row)]
        own = [rollout_log_probs(self.model, [group], self.layout).cpu().numpy() for group in groups]
        apart = [np.abs(mine - group.log_probs).mean() for mine, group in zip(own, groups, strict=True)]
        return len(pairs) - len(others), float(np.mean(apart)), max(others, default=0.0)

    def _first_other(self, group: Rollout, plain: np.ndarray) -> float:
        """How far apart the log-probs of the two codes are where an image first differs from the plain loop's."""
        first = int((group.codes[0] != plain).argmax())
        both = [group, replace(group, codes=plain[None].astype(group.codes.dtype))]
        found = [rollout_log_probs(self.model, [image], self.layout)[0, first].item() for image in both]
        return abs(found[0] - found[1])

    @torch.no_grad()
    def new_weights(self) -> None:
        """Give both the same new weights."""
        for parameter in self.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        tensors = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        self.engine.load_weights(Weights(1, tensors, checksum(tensors.items())))


def compare(policy: Path, engine: str, contexts: int) -> bool:
    """Print a line for each sampling, before and after new weights; whether all is well."""
    both, well = Comparison(policy, engine, contexts), True
    for weights in "the folder's", "new":
        if weights == "new":
            both.new_weights()
        for name, sampling in SAMPLINGS.items():
            equal, apart, others = both(sampling)
            right = apart < MEAN and (equal == IMAGES or sampling.temperature > 0)
            well &= right
            print(
                f"{engine}, {contexts} at once, {weights} weights, {name}: {equal} of {IMAGES} images equal, "
                f"the first other codes {others:.1e} nats apart, log-probs {apart:.1e}" + ("" if right else ": WRONG"),
                flush=True,
            )
    return well


def main() -> None:
    """Compare every engine; the process's status says whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=["transformers", "vllm"], default=["transformers", "vllm"])
    parser.add_argument("--policy", choices=["1m", "5m"], default="5m")
    options = parser.parse_args()
    torch.manual_seed(0)
    well = True
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "policy"
        write_policy(policy, sizes_of(options.policy, resolution=128))
        for engine in options.engines:
            try:
                # With few contexts at once the Transformers engine computes with other kernels.
                for contexts in (2 * IMAGES, FEW) if engine == "transformers" else (2 * IMAGES,):
                    well &= compare(policy, engine, contexts)
            except UserError as error:  # vLLM is not installed
                print(f"{engine}: not compared: {error}")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
