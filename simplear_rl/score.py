"""Scores of images under a reward configuration: how a reward is tried before anything trains on it.

Images come from a folder or from token shards. `output` gets scores.csv, a row for each image, and index.html, all
images with the best first.
"""

from simplear_rl.cli import read_command_line
from simplear_rl.config.score import ScoreConfig

EXAMPLES = """\
  python -m simplear_rl.score --images pictures --output scores
  python -m simplear_rl.score --images pictures --output scores \\
      "reward.models=[{{type: python, function: my_reward.py:red}}]"
  python -m simplear_rl.score --codes runs/demo/data/sft --output scores root=runs/demo limit=100"""
OPTIONS = {"--images": "images", "--prompts": "prompts", "--codes": "codes", "--output": "output"}

if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    command_line = read_command_line(ScoreConfig, "score", EXAMPLES, options=OPTIONS, on_ray=False)

from functools import partial

from tqdm import tqdm

from actors.isolated import build_reward
from simplear_rl.data.prompts import PromptRow
from simplear_rl.errors import all_faults
from simplear_rl.files import require_there, require_writable
from simplear_rl.rewards.files import check_rewards, reward_checks
from simplear_rl.rewards.pictures import find_sources
from simplear_rl.rewards.scorer import RewardModels
from simplear_rl.rewards.scoring import ScoredImage, score_all, summarise, write_page, write_table


def score(config: ScoreConfig) -> None:
    """Score the images, write table and page, and print a line for each reward.

    An image that cannot be scored has empty cells, whatever `on_error` says. What ends the process early, Ctrl-C or an
    error, leaves table and page of the images scored so far.

    Raises:
        UserError: see find_sources and check_rewards.
    """
    require_writable(config.output, "output")
    all_faults(*(partial(require_there, path) for path in config.inputs), *reward_checks(config.reward.models))
    sources = find_sources(config)
    rows = [PromptRow(source.prompt, source.columns) for source in sources]
    check_rewards(config.reward, rows)
    models = RewardModels(config.reward, build_reward, skip=True)
    for line in models.check(rows):
        print(line)
    config.output.mkdir(parents=True, exist_ok=True)
    scored: list[ScoredImage] = []
    try:
        for image in score_all(tqdm(sources, desc="score", unit="image"), models.score, config.batch_size):
            scored.append(image)
    finally:
        if scored:
            write_table(config.output / "scores.csv", scored)
            write_page(config.output / "index.html", scored)
            for name, (mean, deviation, lowest, highest) in summarise(scored).items():
                print(f"{name:24s} {mean:10.4g} +- {deviation:.4g}, from {lowest:.4g} to {highest:.4g}")
            unscored = sum(bool(image.error) for image in scored)
            print(f"{len(scored)} of {len(sources)} images, {unscored} not scored: {config.output / 'index.html'}")


if __name__ == "__main__":
    command_line.run(score)
