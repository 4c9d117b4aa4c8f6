"""Seconds per 1024 x 1024 image (4,096 tokens) on one GPU: SimpleAR's geometry, random weights, bfloat16.

  python -m simplear_rl.timings.latency --batch-sizes 1 28 112

The engine `transformers`: on a GPU every step is one CUDA graph. The published figure for one guided image is 13.55 s
on an A100 (SimpleAR, arXiv 2504.11455, with vLLM). docs/timings.md has ours.
"""

import argparse
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from simplear_rl.device import default_device
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rollout.decode_step import DecodeStep
from simplear_rl.rollout.decoding import Decoder
from simplear_rl.timings.policies import NAMES, geometry, sizes_of

PROMPT_TOKENS = 40


def main() -> None:
    """Print seconds, milliseconds a token and images per second of each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=NAMES, default="simplear-0.5b")
    parser.add_argument("--resolution", type=int, default=1024, help="pixels of a side; a code is 16 x 16")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 28, 112], help="images decoded together")
    parser.add_argument("--guidance-scale", type=float, default=6.0, help="1 is unguided")
    options = parser.parse_args()
    sizes, side = sizes_of(options.policy, options.resolution), options.resolution // 16
    layout = ImageLayout(sizes.vocabulary - sizes.codes, sizes.codes, side, side, "")
    config = Qwen2Config(**geometry(sizes), vocab_size=sizes.vocabulary, tie_word_embeddings=True)
    with torch.device(default_device()):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config).to(torch.bfloat16).eval()
    decoder = Decoder(DecodeStep(model, layout, sizes.tokens + PROMPT_TOKENS))
    sampling = Sampling(guidance_scale=options.guidance_scale)
    for images in options.batch_sizes:
        prompts, seeds = [list(range(PROMPT_TOKENS))] * images, [(0, 0, i, 0) for i in range(images)]
        unconditional = [[0, 1]] * images if options.guidance_scale != 1 else None
        for run in "first", "measured":  # the first one compiles
            start = time.perf_counter()
            decoder(prompts, unconditional, seeds, sampling)
            seconds = time.perf_counter() - start
            print(
                f"{run}: {images} images, {seconds:.2f} s, {1e3 * seconds / sizes.tokens:.2f} ms a token, "
                f"{images / seconds:.3f} images/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
