"""Seconds per guided 1024 x 1024 image (4,096 tokens) on one GPU: SimpleAR's geometry, random weights, bfloat16.

  python -m simplear_rl.timings.latency --batch-sizes 1 4 16 64

The Transformers engine with a static cache; the steps behind the prompt run as one CUDA graph. The published figure is
13.55 s on an A100 (SimpleAR, arXiv 2504.11455, with vLLM).
"""

import argparse
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from simplear_rl.device import default_device
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rollout.transformers_engine import sample_codes

# SimpleAR-0.5B: Qwen2.5-0.5B with 151,672 text ids and 64,000 codes.
GEOMETRY = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 215_672,
}
GUIDANCE_SCALE = 6.0
PROMPT_TOKENS = 40


def main() -> None:
    """Print seconds per image and images per second of each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16, 64], help="images decoded together")
    parser.add_argument("--side", type=int, default=64, help="tokens along an image's side")
    parser.add_argument("--backend", default="inductor", help="of torch.compile; eager needs no GPU and no compiler")
    options = parser.parse_args()
    layout = ImageLayout(151_672, 64_000, options.side, options.side, "")
    config = Qwen2Config(**GEOMETRY, tie_word_embeddings=True, max_position_embeddings=layout.tokens + PROMPT_TOKENS)
    with torch.device(default_device()):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config).to(torch.bfloat16).eval()
    mode = "reduce-overhead" if options.backend == "inductor" else None  # CUDA graphs
    for images in options.batch_sizes:
        torch.compiler.reset()
        decode = torch.compile(model.model, backend=options.backend, mode=mode, fullgraph=True)
        prompts, seeds = [list(range(PROMPT_TOKENS))] * images, [(0, 0, i, 0) for i in range(images)]
        for run in "compiling", "measured":
            start = time.perf_counter()
            with torch.no_grad():
                codes = sample_codes(
                    model,
                    prompts,
                    layout,
                    seeds,
                    Sampling(guidance_scale=GUIDANCE_SCALE),
                    [[0, 1]] * images,
                    static_cache=True,
                    decode=decode,
                )
            codes.cpu()  # waits for the GPU
            seconds = time.perf_counter() - start
            print(f"{run}: {images} images, {seconds:.2f} s, {images / seconds:.3f} images/s", flush=True)


if __name__ == "__main__":
    main()
