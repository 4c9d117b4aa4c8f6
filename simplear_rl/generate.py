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

from functools import partial
from time import monotonic

from tqdm import tqdm

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.data.prompts import prompts_of
from simplear_rl.device import default_device
from simplear_rl.errors import all_faults, some_of
from simplear_rl.files import CONTACT_SHEET, require_weights, require_writable
from simplear_rl.inputs import require_same_tokenizer
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.sizes import read_sizes
from simplear_rl.policy.vocabulary import PromptEncoder, read_encoder, read_layout
from simplear_rl.report.grids import save_grid
from simplear_rl.report.image_files import ImageFiles
from simplear_rl.rollout.capacity import gib_for
from simplear_rl.rollout.engine import Engine, build_engine
from simplear_rl.tokenizers.cosmos import CosmosTokenizer, read_geometry

DEVICE = default_device()
DTYPE = "bfloat16" if DEVICE == "cuda" else "float32"
SHEET_ROWS = 32  # prompts on the contact sheet
SHEET_PIXELS = 256  # of a side of its images, at most


def generate(config: GenerateConfig) -> list[Prompt]:
    """Draw the images, write each as a PNG file that says how it came about, and the first prompts' as a contact sheet.

    Returns the prompts. The same command goes on where it was stopped: images that are there already are kept.

    Raises:
        UserError: `output` holds images with other settings or prompts; see the engines.
    """
    all_faults(
        partial(require_writable, config.output, "output"),
        partial(read_geometry, config.tokenizer),
        partial(read_layout, config.policy),
    )
    layout, encode = read_layout(config.policy, config.tokenizer), read_encoder(config.policy)
    require_weights(config.policy)
    require_same_tokenizer(config.tokenizer, [config.policy], accept=config.accept_tokenizer)
    tokenizer = CosmosTokenizer(config.tokenizer, DEVICE)
    prompts = [Prompt(i, text) for i, text in enumerate(prompts_of(config.prompts, encode))]
    if unknown := dict.fromkeys(word for prompt in prompts for word in encode.unknown_words(prompt.text)):
        print(f"words that the policy does not know: {some_of(list(unknown), 10)}")
    files = ImageFiles(config)
    files.make_folder()
    # A prompt's images are drawn together: one that lacks some is drawn again, to the same images.
    todo = [prompt for prompt in prompts if not files.complete(prompt)]
    total, start = len(prompts) * config.images_per_prompt, monotonic()
    there = total - len(todo) * config.images_per_prompt
    with tqdm(total=total, initial=there, desc=config.engine, unit="image") as bar:
        sampling = Sampling(config.temperature, config.top_k, config.top_p, config.guidance_scale)
        negative = config.negative_prompt, config.negative_prefix
        draw = Draw(todo, config.images_per_prompt, config.seed, 0, sampling, *negative)
        for group in _engine(config, encode, prompts).generate(draw) if todo else ():
            files.write(group.prompt, tokenizer.decode(group.codes, layout.rows, layout.columns))
            bar.update(len(group.codes))
    drawn = total - there
    rows = [(prompt.text, files.small(prompt, SHEET_PIXELS)) for prompt in prompts[:SHEET_ROWS]]
    save_grid(config.output / CONTACT_SHEET, rows)
    speed = f"{drawn} drawn, {drawn / (monotonic() - start):.2f} a second with the engine's start"
    print(f"{total} images, {speed}: {config.output}")
    return prompts


def _engine(config: GenerateConfig, encode: PromptEncoder, prompts: list[Prompt]) -> Engine:
    """The engine, with room for these prompts."""
    longest = max(len(encode(text)) for text in [*(p.text for p in prompts), *filter(None, [config.negative_prompt])])
    engine = EngineConfig(
        type=config.engine,
        dtype=DTYPE,
        max_concurrent=config.batch_size * (1 if config.guidance_scale == 1 else 2),
        max_prompt_tokens=longest,
    )
    cache = config.kv_cache_gib or gib_for(engine.max_concurrent, read_sizes(config.policy), engine)
    return build_engine(config.policy, engine.model_copy(update={"kv_cache_gib": cache}))


if __name__ == "__main__":
    command_line.run(generate)
