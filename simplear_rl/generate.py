"""Images for prompts, with one of three engines: vLLM, Transformers, or speculative Jacobi decoding (sjd)."""

from simplear_rl.cli import read_command_line
from simplear_rl.config.generate import GenerateConfig

EXAMPLES = """\
  python -m simplear_rl.generate --prompts "a red circle and a blue square"
  python -m simplear_rl.generate --prompts prompts.txt --guidance-scale 3 --num-images 4 --output pictures
  echo "three crosses" | python -m simplear_rl.generate --prompts - --engine sjd --output crosses"""
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
from simplear_rl.data.prompts import KINDS, check_prompt, read_prompts
from simplear_rl.device import default_device
from simplear_rl.errors import UserError
from simplear_rl.files import require_weights, require_writable
from simplear_rl.inputs import require_same_tokenizer
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import PromptEncoder, read_encoder, read_layout
from simplear_rl.report.grids import save_grid
from simplear_rl.rollout.engine import Engine, build_engine
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

PNG_END = b"IEND\xaeB`\x82"
DEVICE = default_device()
DTYPE = "bfloat16" if DEVICE == "cuda" else "float32"
SHEET_ROWS = 32  # prompts on the contact sheet
SHEET_PIXELS = 256  # of a side of its images, at most
SETTINGS = (
    "seed",
    "guidance_scale",
    "negative_prompt",
    "negative_prefix",
    "temperature",
    "top_k",
    "top_p",
)


def generate(config: GenerateConfig) -> None:
    """Draw the images, write each as a PNG file that says how it came about, and the first prompts' as a contact sheet.

    The same command goes on where it was stopped: images that are there already are kept.

    Raises:
        UserError: `output` holds images with other settings or prompts; see the engines.
    """
    require_writable(config.output, "output")
    layout, encode = read_layout(config.policy, config.tokenizer), read_encoder(config.policy)
    require_weights(config.policy)
    require_same_tokenizer(config.tokenizer, [config.policy], accept=config.accept_tokenizer)
    tokenizer = CosmosTokenizer(config.tokenizer, DEVICE)
    prompts = [Prompt(i, text) for i, text in enumerate(_texts(config.prompts, encode))]
    config.output.mkdir(parents=True, exist_ok=True)
    kept = {file for prompt in prompts for file in _files(prompt, config) if _is_there(file, prompt, config)}
    # A prompt's images are drawn together: one that lacks some is drawn again, to the same images.
    todo = [prompt for prompt in prompts if not kept.issuperset(_files(prompt, config))]
    total, start = len(prompts) * config.images_per_prompt, monotonic()
    with tqdm(
        total=total, initial=total - len(todo) * config.images_per_prompt, desc=config.engine, unit="image"
    ) as bar:
        sampling = Sampling(config.temperature, config.top_k, config.top_p, config.guidance_scale)
        negative = config.negative_prompt, config.negative_prefix
        draw = Draw(todo, config.images_per_prompt, config.seed, 0, sampling, *negative)
        for group in _engine(config, encode, prompts).generate(draw) if todo else ():
            images = tokenizer.decode(group.codes, layout.rows, layout.columns)
            for file, image in zip(_files(group.prompt, config), images, strict=True):
                _write(file, image, group.prompt, config)
            bar.update(len(images))
        drawn = bar.n - bar.initial
    rows = [
        (prompt.text, np.stack([_small(file) for file in _files(prompt, config)])) for prompt in prompts[:SHEET_ROWS]
    ]
    save_grid(config.output / "contact_sheet.png", rows)
    speed = f"{drawn} drawn, {drawn / (monotonic() - start):.2f} a second with the engine's start"
    print(f"{total} images, {speed}: {config.output}")


def _texts(prompts: str, encode: PromptEncoder) -> list[str]:
    """What `prompts` names: the lines of a file or of standard input, or itself."""
    if prompts == "-":
        return read_prompts(Path("/dev/stdin"), encode)
    if os.path.isfile(prompts) or prompts.lower().endswith(KINDS):
        return read_prompts(Path(prompts), encode)
    try:
        return [check_prompt(prompts, encode)]
    except ValueError as error:
        raise UserError(f"prompts: {error}") from None


def _engine(config: GenerateConfig, encode: PromptEncoder, prompts: list[Prompt]) -> Engine:
    """The engine, with room for these prompts."""
    longest = max(len(encode(text)) for text in [*(p.text for p in prompts), *filter(None, [config.negative_prompt])])
    engine = EngineConfig(
        type=config.engine,
        dtype=DTYPE,
        max_concurrent=config.batch_size * (1 if config.guidance_scale == 1 else 2),
        kv_cache_gib=config.kv_cache_gib,
        max_prompt_tokens=longest,
    )
    return build_engine(config.policy, engine)


def _files(prompt: Prompt, config: GenerateConfig) -> list[Path]:
    """Where a prompt's images are."""
    return [config.output / f"{prompt.index:05d}-{k:02d}.png" for k in range(config.images_per_prompt)]


def _small(file: Path) -> np.ndarray:
    """An image for the contact sheet, uint8 [H, W, 3]."""
    with Image.open(file) as image:
        image.thumbnail((SHEET_PIXELS, SHEET_PIXELS))
        return np.asarray(image)


def _about(prompt: Prompt, config: GenerateConfig) -> dict[str, str]:
    """What an image depends on: its file's text entries."""
    about = {"engine": config.engine, "model": str(config.policy), "tokenizer": str(config.tokenizer)}
    about |= {name: str(getattr(config, name)) for name in SETTINGS}
    return about | {"prompt": prompt.text}


def _is_there(file: Path, prompt: Prompt, config: GenerateConfig) -> bool:
    """Whether an image is there, whole, and from the same settings. Raises UserError if it is from others."""
    try:
        if not file.read_bytes().endswith(PNG_END):  # cut short, which Pillow may not notice
            return False
        with Image.open(file) as image:
            image.load()
            found = image.info
    except (OSError, SyntaxError, ValueError):  # there is none, or a damaged one
        return False
    for name, value in _about(prompt, config).items():
        if found.get(name) != value:
            raise UserError(
                f"{file}: was drawn with {name} {found.get(name)!r}, not {value!r}; choose another output folder"
            )
    return True


def _write(file: Path, image: np.ndarray, prompt: Prompt, config: GenerateConfig) -> None:
    """One PNG file, which appears only when it is complete."""
    entries = PngInfo()
    for name, value in _about(prompt, config).items():
        entries.add_text(name, value)
    partial = file.with_suffix(".partial")
    Image.fromarray(image).save(partial, "PNG", pnginfo=entries)
    partial.rename(file)


if __name__ == "__main__":
    command_line.run(generate)
