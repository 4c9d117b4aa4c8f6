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

# SimpleAR-0.5B: Qwen2.5-0.5B with 151,672 text ids and 64,000 codes.
GEOMETRY = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 215_672,
}
PROMPT_TOKENS = 40


def main() -> None:
    """Print seconds, milliseconds a token and images per second of each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 28, 112], help="images decoded together")
    parser.add_argument("--guidance-scale", type=float, default=6.0, help="1 is unguided")
    parser.add_argument("--side", type=int, default=64, help="tokens along an image's side")
    options = parser.parse_args()
    layout = ImageLayout(151_672, 64_000, options.side, options.side, "")
    columns = layout.tokens + PROMPT_TOKENS
    config = Qwen2Config(**GEOMETRY, tie_word_embeddings=True, max_position_embeddings=columns)
    with torch.device(default_device()):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config).to(torch.bfloat16).eval()
    decoder = Decoder(DecodeStep(model, layout, columns))
    sampling = Sampling(guidance_scale=options.guidance_scale)
    for images in options.batch_sizes:
        prompts, seeds = [list(range(PROMPT_TOKENS))] * images, [(0, 0, i, 0) for i in range(images)]
        unconditional = [[0, 1]] * images if options.guidance_scale != 1 else None
        for run in "first", "measured":  # the first one compiles
            start = time.perf_counter()
            decoder(prompts, unconditional, seeds, sampling)
            seconds = time.perf_counter() - start
            print(
                f"{run}: {images} images, {seconds:.2f} s, {1e3 * seconds / layout.tokens:.2f} ms a token, "
                f"{images / seconds:.3f} images/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
