"""Evaluation while pretraining trains: by the learner itself or by engines of its own, it changes no weight."""

import json

import pytest

from actors import evaluation
from simplear_rl import pretrain
from simplear_rl.benchmarks.geneval import TAGS
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.errors import UserError
from simplear_rl.evaluate import evaluate
from simplear_rl.run.history import read_metrics

EVERY_STEP = [
    "evaluation.every=1",
    "evaluation.prompt_count=7",
    "evaluation.learner_contexts=3",
    "evaluation.scorer={cpus: 0.5}",
]
OWN_ENGINE = "evaluation.engine={max_concurrent: 8, max_prompt_tokens: 32, actors: {cpus: 0.5}}"


def config(world, run, *overrides):
    asked = [
        f"root={world}",
        f"run={run}",
        "data.batch_size=4",
        "data.micro_batch=2",
        "learner.actors={count: 2, cpus: 0.5}",
        "learner.zero_stage=2",
        "steps=2",
        "checkpoint_every=1",
        "sample_prompts=[]",
        "wandb=false",
        *overrides,
    ]
    return load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", asked)


def results(run, step):
    return (run / "evaluations" / f"step-{step:06d}" / "results.jsonl").read_text(encoding="utf-8")


def weights(run, step):
    return (run / "checkpoints" / f"step-{step:06d}" / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def evaluated(ray_cluster, world, tmp_path_factory):
    """A run that the learner's two ranks evaluate, a round with three prompts of each, then the seventh."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    pretrain.train(config(world, run, *EVERY_STEP, "keep_best={metric: evaluation_overall}"))
    return run


def test_scores_are_logged_and_their_folders_stay(evaluated):
    for row in read_metrics(evaluated / "metrics.jsonl"):
        folder = evaluated / "evaluations" / f"step-{row['step']:06d}"
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["scores"]
        assert list(scores) == [*TAGS, "overall"]
        assert {f"evaluation_{tag}": score for tag, score in scores.items()}.items() <= row.items()
        assert len(list(folder.rglob("*.png"))) == 7
    assert results(evaluated, 1) != results(evaluated, 2)


@pytest.mark.slow
def test_the_command_draws_the_same_from_the_checkpoint(evaluated, world, tmp_path):
    policy = evaluated / "checkpoints" / "step-000001" / "model"
    asked = [f"root={world}", f"policy={policy}", f"output={tmp_path}", "prompt_count=7", "images_per_prompt=1"]
    evaluate(load_config(EvaluateConfig, CONFIGS / "shapes" / "evaluate.yaml", asked))
    assert (tmp_path / "results.jsonl").read_text(encoding="utf-8") == results(evaluated, 1)


@pytest.mark.slow
def test_training_is_bit_for_bit_that_of_a_run_without(evaluated, world, tmp_path):
    pretrain.train(config(world, tmp_path))
    assert weights(tmp_path, 2) == weights(evaluated, 2)


@pytest.mark.slow
def test_engines_of_its_own_draw_the_same_also_after_an_interruption(evaluated, world, tmp_path, monkeypatch):
    stream = evaluation.stream

    def interrupted(engines, draw, *args):
        for i, group in enumerate(stream(engines, draw, *args)):
            if i == 3 and (tmp_path / "evaluations" / "step-000002").exists():
                raise KeyboardInterrupt
            yield group

    asked = config(world, tmp_path, *EVERY_STEP, OWN_ENGINE)
    monkeypatch.setattr(evaluation, "stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(asked)
    monkeypatch.undo()
    pretrain.train(asked)
    assert [results(tmp_path, step) for step in (1, 2)] == [results(evaluated, step) for step in (1, 2)]
    assert weights(tmp_path, 2) == weights(evaluated, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.every=1", "evaluation.prompt_count=4"], "4 prompts, and none of counting, color_attr"),
        (
            ["evaluation.every=1", "evaluation.engine={dtype: bfloat16}"],
            r"evaluation.engine.dtype \(bfloat16\) must be",
        ),
        (["keep_best={metric: evaluation_overall}"], "'evaluation_overall' is not logged; `evaluation` is not set"),
        (
            ["evaluation={every: 1, guidance_scale: 3, engine: {max_concurrent: 1}}"],
            "a guided image takes 2 contexts.* evaluation.engine.max_concurrent=1 have",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_run_begins(world, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        pretrain.train(config(world, tmp_path, *overrides))
    assert not (tmp_path / "metrics.jsonl").exists()
