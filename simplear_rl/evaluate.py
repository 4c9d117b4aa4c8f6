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

from collections.abc import Sequence

from actors.evaluation import by_engines, draw_and_judge, judge
from actors.placement import Stage
from actors.rollout import RolloutActor
from actors.scorer import ScorerActor
from simplear_rl import sft
from simplear_rl.benchmarks.opening import open_evaluation
from simplear_rl.benchmarks.output import write_results
from simplear_rl.run.lock import locked


@locked("output")
def evaluate(config: EvaluateConfig) -> dict:
    """Draw, judge and write everything; returns what scores.json holds."""
    return evaluate_policies([config])[0]


def evaluate_policies(configs: Sequence[EvaluateConfig]) -> list[dict]:
    """The same for several policies of equal size, which the same actors draw and judge one after the other.

    The configurations differ in `policy`, `output` and how images are drawn.
    """
    opened = [open_evaluation(config, sft.STAGES) for config in configs]
    config, first = configs[0], opened[0]
    if any(evaluation.todo for evaluation in opened):
        with Stage("evaluate", config.roles, config.faults) as stage:
            scorers = stage.launch("scorer", ScorerActor, config, first.benchmark, first.layout)
            if config.score_only:
                stage.ready()
                judge(config, first.todo, scorers)
            else:
                engines = stage.pool("engine.actors", RolloutActor, config.policy, config.engine)
                stage.ready()
                for i, (other, evaluation) in enumerate(zip(configs, opened, strict=True)):
                    drawing = by_engines(engines, config.engine.max_concurrent, i, other.policy)
                    draw_and_judge(other, evaluation.benchmark, evaluation.todo, drawing, scorers)
    return [write_results(config, evaluation.benchmark) for config, evaluation in zip(configs, opened, strict=True)]


def report(config: EvaluateConfig) -> None:
    """Evaluate and print the table."""
    summary = evaluate(config)
    for name, score in summary["scores"].items():
        bounds = summary["confidence_intervals"].get(name)
        print(f"{name:24s} {score:7.3f}" + (f"  [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""))
    print(f"{summary['images']} images, {summary['left_out']} left out; {config.output / 'index.html'}")


if __name__ == "__main__":
    command_line.run(report)
