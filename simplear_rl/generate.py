"""Images for prompts, with one of three engines: vLLM, Transformers, or speculative Jacobi decoding (sjd)."""

import argparse
import os
from math import inf
from pathlib import Path
from time import monotonic
from typing import get_args

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from simplear_rl.cli import exit_on_user_error
from simplear_rl.config.rollout import EngineConfig, EngineType
from simplear_rl.data.prompts import read_prompts
from simplear_rl.device import default_device
from simplear_rl.errors import UserError
from simplear_rl.files import count_weights, require_writable
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import PromptEncoder, read_encoder, read_layout
from simplear_rl.report.grids import grid_figure
from simplear_rl.rollout.engine import Engine, build_engine
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
    p.add_argument("--engine", choices=get_args(EngineType), default="vllm")
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
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.guidance_scale)
    engine = _engine(options, encode, prompts)
    draw = Draw(prompts, options.num_images, options.seed, 0, sampling, options.negative_prompt)
    groups = engine.generate(draw)
    with tqdm(total=len(prompts) * options.num_images, desc=options.engine, unit="image") as bar:
        for prompt, group in zip(prompts, groups, strict=True):
            images = tokenizer.decode(group.codes, layout.rows, layout.columns)
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


def _engine(options: argparse.Namespace, encode: PromptEncoder, prompts: list[Prompt]) -> Engine:
    longest = max(len(encode(text)) for text in [*(p.text for p in prompts), *filter(None, [options.negative_prompt])])
    config = EngineConfig(
        type=options.engine,
        dtype=DTYPE,
        max_concurrent=options.batch_size * (1 if options.guidance_scale == 1 else 2),
        kv_cache_gib=options.kv_cache_gib,
        max_prompt_tokens=longest,
    )
    return build_engine(options.model, config)


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
