"""Evaluation: draw images for a benchmark's prompts, judge them by its rules, and show them with their verdicts.

Everything goes below `output`: images/ in the benchmark's own layout, results.jsonl (a row for each image), scores.json
(with 95 % confidence intervals) and index.html (each prompt's images, what was required, what was found). The same
command continues an evaluation that was stopped. With `score_only=FOLDER` the images of others are judged.
"""

from simplear_rl.cli import read_command_line
from simplear_rl.config.benchmarks import EvaluateConfig

EXAMPLES = """\
  python -m simplear_rl.evaluate seed=1 root=runs/demo --model runs/demo/sft/final --output scores
  python -m simplear_rl.evaluate --benchmark geneval --model policies/published --output geneval \\
      prompts=evaluation_metadata.jsonl
  python -m simplear_rl.evaluate --benchmark geneval --score-only their_images --output theirs \\
      prompts=evaluation_metadata.jsonl
  python -m simplear_rl.evaluate --benchmark geneval2 --model policies/published --output geneval2 \\
      prompts=geneval2_data.jsonl
  python -m simplear_rl.evaluate --benchmark dpg --model policies/published --output dpg questions=dpg_bench.csv"""
OPTIONS = {
    "--model": "policy",
    "--engine": "engine.type",
    "--output": "output",
    "--score-only": "score_only",
    "--allow-missing": "allow_missing=true",
}

if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    command_line = read_command_line(EvaluateConfig, "evaluate", EXAMPLES, options=OPTIONS)

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from actors.evaluation import draw_and_judge, judge
from actors.placement import Stage
from actors.rollout import RolloutActor
from actors.scorer import ScorerActor
from simplear_rl import sft
from simplear_rl.benchmarks.benchmark import Benchmark, require_images
from simplear_rl.benchmarks.output import open_folder, unfinished, write_results
from simplear_rl.benchmarks.scorer import BENCHMARKS
from simplear_rl.files import require_weights, require_writable
from simplear_rl.inputs import require, require_same_tokenizer
from simplear_rl.policy.vocabulary import ImageLayout, read_encoder, read_layout
from simplear_rl.run.lock import locked
from simplear_rl.vision.files import require_judge


@locked("output")
def evaluate(config: EvaluateConfig) -> dict:
    """Draw, judge and write everything; returns what scores.json holds."""
    read, others = partial(BENCHMARKS[config.benchmark], config), config.score_only
    drawing = [config.tokenizer, config.policy] if config.policy and not others else []
    checks: list[Callable[[], object]] = [partial(require_writable, config.output, "output"), read]
    judging = not os.path.exists(config.output / "scores.json")  # else all is judged, and the page is made anew
    models = config.models if judging else []
    checks += [partial(require_judge, config)] if judging else []
    require(config, *drawing, *models, stages=sft.STAGES, checks=checks)
    benchmark = read()
    checksums = require_images(benchmark, others, config.images_per_prompt, config.allow_missing) if others else None
    layout = _check(config, benchmark, config.policy) if config.policy and not others else None
    open_folder(config, benchmark)
    if todo := unfinished(config, benchmark, checksums):
        with Stage("evaluate", config.roles, config.faults) as stage:
            scorers = stage.launch("scorer", ScorerActor, config, benchmark, layout)
            if config.score_only:
                stage.ready()
                judge(config, todo, scorers)
            else:
                engines = stage.pool("engine.actors", RolloutActor, config.policy, config.engine)
                stage.ready()
                draw_and_judge(config, benchmark, todo, engines, scorers)
    return write_results(config, benchmark)


def _check(config: EvaluateConfig, benchmark: Benchmark, policy: Path) -> ImageLayout:
    """The policy's layout, once policy, tokenizer and prompts are known to fit each other. Raises UserError."""
    layout = read_layout(policy, config.tokenizer)
    require_same_tokenizer(config.tokenizer, [policy], accept=config.accept_tokenizer)
    encode = read_encoder(policy, config.engine.max_prompt_tokens)
    for text in benchmark.texts:
        encode(text)
    require_weights(policy)
    return layout


def report(config: EvaluateConfig) -> None:
    """Evaluate and print the table."""
    summary = evaluate(config)
    for name, score in summary["scores"].items():
        bounds = summary["confidence_intervals"].get(name)
        print(f"{name:24s} {score:7.3f}" + (f"  [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""))
    print(f"{summary['images']} images, {summary['left_out']} left out; {config.output / 'index.html'}")


if __name__ == "__main__":
    command_line.run(report)
