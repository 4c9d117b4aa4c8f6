"""Images for prompts, with one of three engines: vLLM, Transformers, or speculative Jacobi decoding (sjd)."""

import argparse
import os
from collections.abc import Iterator
from math import inf
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from simplear_rl.cli import exit_on_user_error
from simplear_rl.config import EngineConfig
from simplear_rl.data.prompts import read_prompts
from simplear_rl.device import default_device
from simplear_rl.errors import UserError
from simplear_rl.files import count_weights
from simplear_rl.inputs import require_writable
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.vocabulary import PromptEncoder, read_encoder, read_layout
from simplear_rl.report.grids import grid_figure
from simplear_rl.rollout.jacobi import sample_codes_jacobi
from simplear_rl.rollout.sampling import Sampling
from simplear_rl.rollout.transformers_engine import sample_codes
from simplear_rl.rollout.types import Prompt
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

EXAMPLES = """examples:
  python -m simplear_rl.generate --prompts "a red circle and a blue square"
  python -m simplear_rl.generate --prompts prompts.txt --guidance-scale 3 --num-images 4 --output pictures
  echo "three crosses" | python -m simplear_rl.generate --prompts - --engine sjd"""
DEVICE = default_device()
DTYPE = "bfloat16" if DEVICE == "cuda" else "float32"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m simplear_rl.generate",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", type=Path, default="runs/demo/grpo/final", help="policy folder (default: the demo's)")
    p.add_argument(
        "--tokenizer", type=Path, default="runs/demo/tokenizer", help="visual tokenizer: folder or Hugging Face id"
    )
    p.add_argument(
        "--prompts", required=True, help="a prompt, a file with one prompt per line, or - for standard input"
    )
    p.add_argument("--engine", choices=["vllm", "transformers", "sjd"], default="vllm")
    p.add_argument("--guidance-scale", type=float, default=1.0, help="1 is unguided")
    p.add_argument("--negative-prompt", help="caption of the unconditional context (default: training's null prompt)")
    p.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    p.add_argument("--top-k", type=int, default=0, help="0 keeps the whole codebook")
    p.add_argument("--top-p", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--num-images", type=int, default=1, help="images per prompt")
    p.add_argument("--batch-size", type=int, default=16, help="images decoded together")
    p.add_argument("--kv-cache-gib", type=float, default=0.25, help="memory of vLLM's key-value cache, GiB")
    p.add_argument("--output", type=Path, default="images", help="folder for the PNG files and contact_sheet.png")
    return p


def generate(options: argparse.Namespace) -> None:
    """Draw the images, write each as a PNG file that says how it came about, and all of them as a contact sheet."""
    _check(options)
    require_writable(options.output, "--output")
    layout, encode = read_layout(options.model), read_encoder(options.model)
    count_weights(options.model)  # opens their files
    tokenizer = CosmosTokenizer(options.tokenizer, DEVICE)
    layout.check_codebook(tokenizer.codebook_size, str(options.tokenizer))
    prompts = [Prompt(i, text) for i, text in enumerate(_texts(options.prompts, encode))]
    options.output.mkdir(parents=True, exist_ok=True)
    rows, start = [], monotonic()
    draw = _with_vllm if options.engine == "vllm" else _with_transformers
    with tqdm(total=len(prompts) * options.num_images, desc=options.engine, unit="image") as bar:
        for prompt, codes_GT in zip(prompts, draw(options, prompts), strict=True):
            images = tokenizer.decode(codes_GT, layout.rows, layout.columns)
            for k, image in enumerate(images):
                _write(options.output / f"{prompt.index:05d}-{k:02d}.png", image, prompt.text, options)
            rows.append((prompt.text, images))
            bar.update(len(images))
    grid_figure(rows).savefig(options.output / "contact_sheet.png")
    print(f"{bar.n} images, {bar.n / (monotonic() - start):.2f} images/s with the engine's start: {options.output}")


def _texts(prompts: str, encode: PromptEncoder) -> list[str]:
    """What --prompts names: the lines of a file or of standard input, or itself."""
    if prompts == "-":
        return read_prompts(Path("/dev/stdin"), encode)
    if os.path.isfile(prompts) or prompts.endswith(".txt"):
        return read_prompts(Path(prompts), encode)
    encode(prompts)
    return [prompts]


def _check(options: argparse.Namespace) -> None:
    limits = {"guidance_scale": 0, "temperature": 0, "top_k": 0, "seed": 0, "num_images": 1, "batch_size": 1}
    for name, least in limits.items():
        if not least <= getattr(options, name) < inf:  # which nan is not, either
            raise UserError(f"--{name.replace('_', '-')}: expected at least {least}, found {getattr(options, name)}")
    if not 0 < options.top_p <= 1:
        raise UserError(f"--top-p: expected a share above 0 and at most 1, found {options.top_p}")
    if not 0 < options.kv_cache_gib < inf:
        raise UserError(f"--kv-cache-gib: expected more than 0, found {options.kv_cache_gib}")
    if options.negative_prompt and options.guidance_scale == 1:
        raise UserError("--negative-prompt: has no effect without guidance; set --guidance-scale")


def _sampling(options: argparse.Namespace) -> Sampling:
    return Sampling(options.temperature, options.top_k, options.top_p, options.guidance_scale)


def _with_vllm(options: argparse.Namespace, prompts: list[Prompt]) -> Iterator[np.ndarray]:
    """Codes [G, T] of each prompt."""
    try:
        from simplear_rl.rollout.engine import RolloutEngine
    except ImportError as error:
        raise UserError(f"--engine vllm: vLLM is not installed ({error}); --engine transformers needs none") from error
    encode = read_encoder(options.model)
    longest = max(len(encode(text)) for text in [*(p.text for p in prompts), *filter(None, [options.negative_prompt])])
    config = EngineConfig(
        dtype=DTYPE,
        max_concurrent=options.batch_size * (1 if options.guidance_scale == 1 else 2),
        kv_cache_gib=options.kv_cache_gib,
        max_prompt_tokens=longest,
    )
    engine, seed = RolloutEngine(options.model, config), (options.seed, 0)
    for group in engine.generate(prompts, options.num_images, seed, _sampling(options), options.negative_prompt):
        yield group.codes


@torch.no_grad()
def _with_transformers(options: argparse.Namespace, prompts: list[Prompt]) -> Iterator[np.ndarray]:
    """Codes [G, T] of each prompt."""
    model, encode = load_policy(options.model, getattr(torch, DTYPE))
    model, layout, sampling = model.to(DEVICE).eval(), read_layout(options.model), _sampling(options)
    other = encode(options.negative_prompt) if options.negative_prompt else encode.null
    images = [(prompt, k) for prompt in prompts for k in range(options.num_images)]
    drawn: list[np.ndarray] = []  # of the prompts that are not complete
    for start in range(0, len(images), options.batch_size):
        batch = images[start : start + options.batch_size]
        seeds = [(options.seed, 0, prompt.index, k) for prompt, k in batch]
        contexts = [encode(prompt.text) for prompt, _ in batch]
        unconditional = [other] * len(batch) if sampling.guidance_scale != 1 else None
        if options.engine == "sjd":
            codes_BT = sample_codes_jacobi(model, contexts, layout, seeds, sampling, unconditional)[0]
        else:
            codes_BT = sample_codes(model, contexts, layout, seeds, sampling, unconditional)
        drawn.extend(codes_BT.cpu().numpy())
        while len(drawn) >= options.num_images:
            yield np.stack(drawn[: options.num_images])
            del drawn[: options.num_images]


def _write(file: Path, image: np.ndarray, prompt: str, options: argparse.Namespace) -> None:
    """One PNG file with text entries: prompt, engine, model, seed and the rest of what it depends on."""
    about = PngInfo()
    for name in "engine", "model", "seed", "guidance_scale", "negative_prompt", "temperature", "top_k", "top_p":
        about.add_text(name, str(getattr(options, name)))
    about.add_text("prompt", prompt)
    Image.fromarray(image).save(file, pnginfo=about)


if __name__ == "__main__":
    options = parser().parse_args()
    exit_on_user_error("generate", lambda: generate(options))
