"""Human preferences: draws pairs of images and serves a page on this machine on which somebody chooses the better ones.

Answers are appended to `output`/labels.jsonl, which `tokenize pairs=drop_ties` reads. The same command continues where
it was stopped. Ctrl-C ends it.
"""

from simplear_rl.cli import read_command_line
from simplear_rl.config.label import LabelConfig

EXAMPLES = """\
  python -m simplear_rl.label --prompts prompts.txt
  python -m simplear_rl.label --prompts "a red circle" --num-images 20 --output labels port=9000"""
OPTIONS = {
    "--model": "policy",
    "--tokenizer": "tokenizer",
    "--prompts": "prompts",
    "--engine": "engine",
    "--guidance-scale": "guidance_scale",
    "--seed": "seed",
    "--num-images": "images_per_prompt",
    "--output": "output",
}

if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    command_line = read_command_line(LabelConfig, "label", EXAMPLES, options=OPTIONS, on_ray=False)

from itertools import pairwise
from pathlib import Path

from PIL import Image

from simplear_rl.generate import generate
from simplear_rl.labelling.labels import ImagePair, Labels
from simplear_rl.labelling.server import label_server
from simplear_rl.run.lock import locked


@locked("output")
def label(config: LabelConfig) -> None:
    """Draw the pairs that are missing, then serve their page until the process is stopped."""
    generate(config.model_copy(update={"output": config.output / "images"}))
    labels = Labels(config.output, drawn_pairs(config.output))
    server = label_server(labels, config.port)
    print(f"{len(labels.pairs)} pairs, {len(labels.rows)} of them labelled; open http://127.0.0.1:{server.server_port}")
    print(f"labels: {labels.file}; Ctrl-C ends the page", flush=True)
    with server:
        server.serve_forever()


def drawn_pairs(folder: Path) -> list[ImagePair]:
    """Consecutive images of each prompt; the images say of which."""
    files = sorted((folder / "images").glob("*-*.png"))
    prompts = [_prompt(file) for file in files]
    names = [str(file.relative_to(folder)) for file in files]
    pairs = list(zip(prompts, pairwise(names), strict=False))[::2]
    return [ImagePair(prompt, *pair) for prompt, pair in pairs]


def _prompt(file: Path) -> str:
    with Image.open(file) as image:
        return image.info["prompt"]


if __name__ == "__main__":
    command_line.run(label)
