"""A policy folder to start from: a Qwen2.5 language model with rows for images, a published checkpoint, or a policy.

Of a policy, it makes one for another resolution or prompt prefix. All have safetensors weights, and what is written is
loaded by Transformers and vLLM as it is.
"""

import argparse
from pathlib import Path

from simplear_rl.cli import exit_on_user_error
from simplear_rl.policy.prompt_prefixes import PROMPT_PREFIXES

EXAMPLES = """examples:
  python -m simplear_rl.create_policy --source Qwen/Qwen2.5-0.5B-Instruct --resolution 512 --output policies/start
  python -m simplear_rl.create_policy --source Daniel0724/SimpleAR-0.5B-SFT --resolution 1024 --output policies/sft
  python -m simplear_rl.create_policy --source runs/pretrain/final --resolution 1024 --output policies/sft_start"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m simplear_rl.create_policy",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--source", type=Path, required=True, help="language model, checkpoint or policy: folder or Hugging Face id"
    )
    p.add_argument("--output", type=Path, required=True, help="new folder")
    p.add_argument("--resolution", type=int, required=True, help="pixels along each side of an image")
    p.add_argument(
        "--tokenizer",
        type=Path,
        help="visual tokenizer, for its codebook and pixels per code: folder or Hugging Face id (default: those of "
        "Cosmos-1.0-Tokenizer-DV8x16x16)",
    )
    names = ", ".join(f"{name} ({text!r})" for name, text in PROMPT_PREFIXES.items())
    p.add_argument(
        "--prompt-prefix",
        help=f"text before every caption, with the space that ends it, or a name: {names} "
        "(default: a policy's own, else realistic)",
    )
    return p


if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    options = parser().parse_args()

from simplear_rl.policy.conversion import convert
from simplear_rl.tokenizers.cosmos import OFFICIAL, read_geometry


def create_policy(options: argparse.Namespace) -> None:
    """Write the folder and say what it holds."""
    layout = convert(
        options.source,
        options.output,
        geometry=read_geometry(options.tokenizer) if options.tokenizer else OFFICIAL,
        resolution=options.resolution,
        prompt_prefix=PROMPT_PREFIXES.get(options.prompt_prefix, options.prompt_prefix),
    )
    print(
        f"{options.output}: {layout.visual_offset} text ids and {layout.codebook_size} codes, "
        f"images of {layout.rows} x {layout.columns} codes, prompts <|t2i|>{layout.prompt_prefix}...<|soi|>"
    )


if __name__ == "__main__":
    exit_on_user_error("create_policy", lambda: create_policy(options))
