"""Images per second of the engines, side by side, on random policies of 5 M and 60 M parameters.

  OMP_NUM_THREADS=2 python -m simplear_rl.timings.throughput --images 16 64 --tokens 256

With --trained FOLDER instead: speculative Jacobi decoding against the plain loop, one guided image at a time.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import torch

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.policy.model import load_policy, random_policy, word_tokenizer
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import read_layout
from simplear_rl.rollout.jacobi import sample_codes_jacobi
from simplear_rl.rollout.transformers_engine import sample_codes
from simplear_rl.rollout.vllm_engine import VllmEngine

GEOMETRIES = {
    "5M": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4},
    "60M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 10, "num_attention_heads": 12},
}
GUIDED, UNGUIDED = Sampling(guidance_scale=3.0), Sampling()
WORDS = ["A", "photo", "of", "a", "red", "circle", "and", "blue", "square"]


def measure(policy: Path, images: int, repeats: int) -> dict[str, float]:
    """Median images/s of each engine; they take turns, after one warm-up each."""
    prompts = [Prompt(i, "a red circle and a blue square " * (1 + i % 4)) for i in range(images)]
    config = EngineConfig(max_concurrent=2 * images, kv_cache_gib=4.0, max_prompt_tokens=64)
    engine, (model, encode) = VllmEngine(policy, config), load_policy(policy)
    layout, contexts = read_layout(policy), [encode(p.text) for p in prompts]
    seeds = [(0, 0, i, 0) for i in range(images)]

    @torch.no_grad()
    def transformers() -> None:
        sample_codes(model, contexts, layout, seeds, GUIDED, [encode.null] * images)

    runs: dict[str, Callable[[], object]] = {
        "vllm guided": lambda: list(engine.generate(Draw(prompts, 1, 0, 0, GUIDED))),
        "vllm unguided": lambda: list(engine.generate(Draw(prompts, 1, 0, 0, UNGUIDED))),
        "transformers guided": transformers,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: images / median(times) for name, times in seconds.items()}


@torch.no_grad()
def measure_jacobi(policy: Path, images: int) -> None:
    """Print passes and seconds per image of both loops, which take turns."""
    model, encode = load_policy(policy)
    layout, contexts = read_layout(policy), [encode("a red circle and a blue square")]
    plain, jacobi, passes = [], [], []
    for k in range(images):
        seeds = [(0, 0, 0, k)]
        start = time.perf_counter()
        sample_codes(model, contexts, layout, seeds, GUIDED, [encode.null])
        middle = time.perf_counter()
        _, statistics = sample_codes_jacobi(model, contexts, layout, seeds, GUIDED, [encode.null])
        jacobi.append(time.perf_counter() - middle)
        plain.append(middle - start)
        passes.append(statistics.steps)
    print(f"plain {layout.tokens} passes, {median(plain):.4f} s; sjd {mean(passes):.1f} passes, {median(jacobi):.4f} s")
    print(f"passes / {layout.tokens / mean(passes):.2f}, time / {median(plain) / median(jacobi):.2f}")


def main() -> None:
    """Print a table of images per second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=sorted(GEOMETRIES), default=list(GEOMETRIES))
    parser.add_argument("--images", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trained", type=Path, metavar="FOLDER", help="policy folder")
    options = parser.parse_args()
    if options.trained:
        measure_jacobi(options.trained, images=40)
        return
    print("size images  vllm guided  vllm unguided  transformers guided  guided/transformers  guided/(unguided/2)")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            policy = Path(folder) / "policy"
            geometry = GEOMETRIES[size] | {"num_key_value_heads": 4, "max_position_embeddings": options.tokens + 64}
            grid = (options.tokens // 16, 16)
            random_policy(
                policy,
                word_tokenizer(WORDS),
                codebook_size=1000,
                grid=grid,
                prompt_prefix="",
                geometry=geometry,
                seed=0,
            )
            for images in options.images:
                rate = measure(policy, images, options.repeats)
                guided, unguided, transformers = rate.values()
                print(
                    f"{size:4s} {images:6d} {guided:12.2f} {unguided:14.2f} {transformers:20.2f} "
                    f"{guided / transformers:20.2f} {guided / (unguided / 2):20.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
