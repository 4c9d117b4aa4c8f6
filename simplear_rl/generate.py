"""Images for prompts, with one of three engines: vLLM, Transformers, or speculative Jacobi decoding (sjd)."""

from simplear_rl.cli import read_command_line
from simplear_rl.config.generate import GenerateConfig

EXAMPLES = """\
  python -m simplear_rl.generate --prompts "a red circle and a blue square"
  python -m simplear_rl.generate --prompts prompts.txt --guidance-scale 3 --num-images 4
  echo "three crosses" | python -m simplear_rl.generate --prompts - --engine sjd"""
OPTIONS = {
    "--model": "policy",
    "--tokenizer": "tokenizer",
    "--prompts": "prompts",
    "--engine": "engine",
    "--guidance-scale": "guidance_scale",
    "--negative-prompt": "negative_prompt",
    "--temperature": "temperature",
    "--top-k": "top_k",
    "--top-p": "top_p",
    "--seed": "seed",
    "--num-images": "images_per_prompt",
    "--batch-size": "batch_size",
    "--kv-cache-gib": "kv_cache_gib",
    "--output": "output",
}

if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    command_line = read_command_line(GenerateConfig, "generate", EXAMPLES, options=OPTIONS, on_ray=False)

import os
from pathlib import Path
from time import monotonic

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.data.prompts import read_prompts
from simplear_rl.device import default_device
from simplear_rl.files import require_weights, require_writable
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import PromptEncoder, read_encoder, read_layout
from simplear_rl.report.grids import grid_figure
from simplear_rl.rollout.engine import Engine, build_engine
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

DEVICE = default_device()
DTYPE = "bfloat16" if DEVICE == "cuda" else "float32"


def generate(config: GenerateConfig) -> None:
    """Draw the images, write each as a PNG file that says how it came about, and all of them as a contact sheet."""
    require_writable(config.output, "output")
    layout, encode = read_layout(config.policy, config.tokenizer), read_encoder(config.policy)
    require_weights(config.policy)
    tokenizer = CosmosTokenizer(config.tokenizer, DEVICE)
    prompts = [Prompt(i, text) for i, text in enumerate(_texts(config.prompts, encode))]
    config.output.mkdir(parents=True, exist_ok=True)
    rows, start = [], monotonic()
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.guidance_scale)
    draw = Draw(prompts, config.images_per_prompt, config.seed, 0, sampling, config.negative_prompt)
    groups = _engine(config, encode, prompts).generate(draw)
    with tqdm(total=len(prompts) * config.images_per_prompt, desc=config.engine, unit="image") as bar:
        for prompt, group in zip(prompts, groups, strict=True):
            images = tokenizer.decode(group.codes, layout.rows, layout.columns)
            for k, image in enumerate(images):
                _write(config.output / f"{prompt.index:05d}-{k:02d}.png", image, prompt.text, config)
            rows.append((prompt.text, images))
            bar.update(len(images))
    grid_figure(rows).savefig(config.output / "contact_sheet.png")
    print(f"{bar.n} images, {bar.n / (monotonic() - start):.2f} images/s with the engine's start: {config.output}")


def _texts(prompts: str, encode: PromptEncoder) -> list[str]:
    """What `prompts` names: the lines of a file or of standard input, or itself."""
    if prompts == "-":
        return read_prompts(Path("/dev/stdin"), encode)
    if os.path.isfile(prompts) or prompts.endswith(".txt"):
        return read_prompts(Path(prompts), encode)
    encode(prompts)
    return [prompts]


def _engine(config: GenerateConfig, encode: PromptEncoder, prompts: list[Prompt]) -> Engine:
    longest = max(len(encode(text)) for text in [*(p.text for p in prompts), *filter(None, [config.negative_prompt])])
    engine = EngineConfig(
        type=config.engine,
        dtype=DTYPE,
        max_concurrent=config.batch_size * (1 if config.guidance_scale == 1 else 2),
        kv_cache_gib=config.kv_cache_gib,
        max_prompt_tokens=longest,
    )
    return build_engine(config.policy, engine)


def _write(file: Path, image: np.ndarray, prompt: str, config: GenerateConfig) -> None:
    """One PNG file with text entries: prompt, engine, model, seed and the rest of what it depends on."""
    about = PngInfo()
    about.add_text("engine", config.engine)
    about.add_text("model", str(config.policy))
    for name in "seed", "guidance_scale", "negative_prompt", "temperature", "top_k", "top_p":
        about.add_text(name, str(getattr(config, name)))
    about.add_text("prompt", prompt)
    Image.fromarray(image).save(file, pnginfo=about)


if __name__ == "__main__":
    command_line.run(generate)
