"""Evaluation: draw images for a benchmark's prompts and score them by its rules.

Writes results.jsonl (one line per image), scores.json (accuracy per tag with 95 % confidence intervals) and the images,
in the folder layout of GenEval, below `output`.
"""

import json
from itertools import cycle
from pathlib import Path

import ray
from tqdm import tqdm

from actors.placement import Stage
from actors.rollout import RolloutActor, stream
from actors.scorer import ScorerActor
from simplear_rl.benchmarks.geneval import confidence_intervals, scores
from simplear_rl.benchmarks.scorer import PROMPTS
from simplear_rl.cli import run_command
from simplear_rl.config import EvaluateConfig
from simplear_rl.files import count_weights
from simplear_rl.inputs import require, require_writable
from simplear_rl.policy.vocabulary import read_encoder, read_layout
from simplear_rl.rollout.sampling import Sampling
from simplear_rl.rollout.types import Prompt
from simplear_rl.tokenizers.cosmos import read_geometry


def evaluate(config: EvaluateConfig) -> dict:
    """Draw, score and write everything; returns what scores.json holds."""
    require_writable(config.output, "output")
    require(config, config.tokenizer, config.policy)
    layout = read_layout(config.policy)
    layout.check_codebook(read_geometry(config.tokenizer).codebook_size, str(config.tokenizer))
    read_encoder(config.policy, config.engine.max_prompt_tokens)
    count_weights(config.policy)  # opens their files
    sampling = Sampling(temperature=config.temperature, guidance_scale=config.guidance_scale)
    metadata = PROMPTS[config.benchmark]()
    prompts = [Prompt(i, entry["prompt"]) for i, entry in enumerate(metadata)]
    with Stage("evaluate", {"engine.actors": config.engine.actors, "scorer": config.scorer}) as stage:
        engines = stage.launch("engine.actors", RolloutActor, config.policy, config.engine)
        scorers = cycle(stage.launch("scorer", ScorerActor, config.benchmark, config.tokenizer, layout))
        stage.ready()
        verdicts: dict[int, ray.ObjectRef] = {}
        drawn = stream(engines, 0, prompts, config.images_per_prompt, config.seed, sampling)
        for i, rollout in tqdm(drawn, desc="evaluate", total=len(prompts), unit="prompt"):
            verdicts[i] = next(scorers).judge.remote(rollout, metadata[i], config.output / f"{i:05d}")
        results = [row for i in range(len(prompts)) for row in ray.get(verdicts[i])]
    return _write(config.output, results)


def _write(output: Path, results: list[dict]) -> dict:
    summary = {
        "images": len(results),
        "scores": scores(results),
        "confidence_intervals": confidence_intervals(results, seed=0),
    }
    (output / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in results))
    partial = output / "scores.json.partial"
    partial.write_text(json.dumps(summary, indent=1))
    partial.rename(output / "scores.json")
    return summary


def report(config: EvaluateConfig) -> None:
    """Evaluate and print the table."""
    summary = evaluate(config)
    for tag, score in summary["scores"].items():
        low, high = summary["confidence_intervals"][tag]
        print(f"{tag:14s} {score:.3f}  [{low:.3f}, {high:.3f}]")
    print(f"{summary['images']} images; {config.output}")


if __name__ == "__main__":
    run_command(report, EvaluateConfig, "evaluate")
