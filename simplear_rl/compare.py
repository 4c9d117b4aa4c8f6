"""Two policies on the same prompts and seeds, side by side: which one is better, by how much, and where.

A and B are policy folders, folders of evaluations, or folders of images that `generate` has drawn. `output` gets
pairs.csv, a row for each pair of images, and index.html, all pairs with the largest gain first.
"""

from simplear_rl.cli import read_command_line
from simplear_rl.config.compare import CompareConfig

EXAMPLES = """\
  python -m simplear_rl.compare runs/demo/sft/final runs/demo/grpo/final --prompts prompts.txt --output comparison \\
      root=runs/demo
  python -m simplear_rl.compare runs/demo/evaluation/sft runs/demo/evaluation/grpo --output comparison"""
OPTIONS = {"--prompts": "prompts", "--output": "output", "--engine": "engine"}

if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    command_line = read_command_line(CompareConfig, "compare", EXAMPLES, False, OPTIONS, False, ("a", "b"))

import os
from pathlib import Path

from tqdm import tqdm

from actors.isolated import build_reward
from simplear_rl.config.generate import GenerateConfig
from simplear_rl.data.prompts import PromptRow
from simplear_rl.errors import UserError, all_faults
from simplear_rl.files import require_writable
from simplear_rl.generate import generate
from simplear_rl.report.image_files import ImageFiles
from simplear_rl.rewards import pairs as paired
from simplear_rl.rewards.files import check_rewards, reward_checks
from simplear_rl.rewards.pictures import Source, images_of, sources_of
from simplear_rl.rewards.scorer import RewardModels
from simplear_rl.rewards.scoring import score_all

DRAWING = ("prompts", "tokenizer", "engine", "seed", "images_per_prompt", "guidance_scale", "temperature", "batch_size")


def compare(config: CompareConfig) -> None:
    """Draw and score what is not there yet, write table and page, and print a line for each score.

    Raises:
        UserError: the sides are not of one kind, or their images do not pair; see `generate`, check_rewards.
    """
    require_writable(config.output, "output")
    kinds = [paired.kind_of(path) for path in config.sides.values()]
    if kinds[0] != kinds[1]:
        raise UserError(f"{config.a} is {kinds[0]}, {config.b} is {kinds[1]}: expected two of a kind")
    if kinds[0] == paired.EVALUATION:
        sides = [paired.of_evaluation(path) for path in config.sides.values()]
    else:
        all_faults(*reward_checks(config.reward.models))
        if kinds[0] == paired.POLICY:
            drawn = [(config.output / side, _draw(config, side, policy)) for side, policy in config.sides.items()]
        else:
            drawn = [(folder, images_of(folder)) for folder in config.sides.values()]
        sides = _scored(config, drawn)
    pairs = paired.pair_up(*sides)
    if kinds[0] == paired.EVALUATION:
        paired.require_same_judge(list(config.sides.values()))
    found = paired.comparisons(pairs)
    config.output.mkdir(parents=True, exist_ok=True)
    paired.write_table(config.output / "pairs.csv", pairs)
    paired.write_page(config.output / "index.html", pairs, found, [str(config.a), str(config.b)])
    for name, (result, _) in found.items():
        print(f"{name:24s} {result}")
    print(f"{len(pairs)} pairs: {config.output / 'index.html'}")


def _draw(config: CompareConfig, side: str, policy: Path) -> list[Source]:
    """A policy's images of the prompts: those of an earlier, larger comparison stay in its folder, and out of this."""
    if not config.prompts:
        raise UserError("policies are compared on prompts: set `prompts`")
    if config.prompts == "-" or (os.path.exists(config.prompts) and not os.path.isfile(config.prompts)):
        raise UserError(f"prompts: {config.prompts}: both policies draw them, so they are read twice: expected a file")
    drawing = GenerateConfig(
        policy=policy, output=config.output / side, **{name: getattr(config, name) for name in DRAWING}
    )
    prompts = generate(drawing)
    return sources_of([file for prompt in prompts for file in ImageFiles(drawing).of(prompt)])


def _scored(config: CompareConfig, drawn: list[tuple[Path, list[Source]]]) -> list[dict[str, paired.Scored]]:
    rows = [PromptRow(source.prompt, source.columns) for _, side in drawn for source in side]
    check_rewards(config.reward, rows)
    models = RewardModels(config.reward, build_reward, skip=True)
    for line in models.check(rows):
        print(line)
    scored = []
    for folder, side in drawn:
        bar = tqdm(side, desc="score", unit="image")
        scored.append(paired.of_images(folder, list(score_all(bar, models.score, config.batch_size))))
    return scored


if __name__ == "__main__":
    command_line.run(compare)
