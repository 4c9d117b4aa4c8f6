"""Evaluation while GRPO trains: it scores the step's weights, disturbs nothing, and survives what a run survives."""

import json
import os
import signal

import pytest
import ray

from actors import evaluation
from actors.evaluation import Evaluation
from simplear_rl import grpo
from simplear_rl.benchmarks.geneval import TAGS
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.load import load_config
from simplear_rl.errors import UserError
from simplear_rl.evaluate import evaluate
from simplear_rl.run.history import read_metrics


def results(run, step):
    return (run / "evaluations" / f"step-{step:06d}" / "results.jsonl").read_text()


def weights(run, step):
    return (run / "checkpoints" / f"step-{step:06d}" / "model" / "model.safetensors").read_bytes()


def test_scores_are_logged_and_their_folders_stay(one_of_each):
    for row in read_metrics(one_of_each / "metrics.jsonl"):
        folder = one_of_each / "evaluations" / f"step-{row['step']:06d}"
        scores = json.loads((folder / "scores.json").read_text())["scores"]
        assert list(scores) == [*TAGS, "overall"]
        assert {f"evaluation_{tag}": score for tag, score in scores.items()}.items() <= row.items()
        assert "evaluation_seconds" in row
        assert (folder / "index.html").exists() and len(list(folder.rglob("*.png"))) == 12
    assert len(list((one_of_each / "evaluations").iterdir())) == 2


@pytest.mark.slow
def test_it_draws_what_the_command_draws_from_the_checkpoint(one_of_each, world, tmp_path):
    """So it draws with the current weights, and with the same random numbers at every step."""
    policy = one_of_each / "checkpoints" / "step-000001" / "model"
    asked = [f"root={world}", f"policy={policy}", f"output={tmp_path}", "prompt_count=6", "images_per_prompt=2"]
    evaluate(load_config(EvaluateConfig, CONFIGS / "shapes" / "evaluate.yaml", asked))
    assert (tmp_path / "results.jsonl").read_text() == results(one_of_each, 1) != results(one_of_each, 2)


@pytest.mark.slow
def test_training_is_bit_for_bit_that_of_a_run_without(one_of_each, tmp_path, grpo_config):
    grpo.train(grpo_config(tmp_path, "evaluation=null", "keep_best=null"))
    for mine, theirs in zip(*(read_metrics(run / "metrics.jsonl") for run in (one_of_each, tmp_path)), strict=True):
        trained = {name for name in theirs if not name.endswith("_seconds")}
        assert {name: mine[name] for name in trained} == {name: theirs[name] for name in trained}
    assert weights(one_of_each, 2) == weights(tmp_path, 2)
    assert not (tmp_path / "evaluations").exists()


@pytest.mark.slow
def test_an_interrupted_evaluation_is_done_again_and_one_of_a_lost_engine_is_finished(
    one_of_each, tmp_path, monkeypatch, grpo_config
):
    """The run ends in the middle of the evaluation of step 2; in that of step 1 an engine dies."""
    stream = evaluation.stream
    output = tmp_path / "evaluations" / "step-000002"

    def disturbed(engines, *args):
        for i, group in enumerate(stream(engines, *args)):
            if i == 0 and not output.exists():
                place = ray.get(engines.fixed[0].beat.remote(0))
                os.kill(int(place.split("process ")[1].split(",")[0]), signal.SIGKILL)
            if i == 3 and output.exists():
                raise KeyboardInterrupt
            yield group

    monkeypatch.setattr(evaluation, "stream", disturbed)
    with pytest.raises(KeyboardInterrupt):
        grpo.train(grpo_config(tmp_path))
    assert results(tmp_path, 1) == results(one_of_each, 1)
    (output / "verdicts").mkdir(exist_ok=True)
    (output / "verdicts" / "00005.json").write_text("[]")  # as of other weights
    kept = (tmp_path / "evaluations" / "step-000001" / "scores.json").stat().st_mtime_ns

    monkeypatch.undo()
    grpo.train(grpo_config(tmp_path))
    assert results(tmp_path, 2) == results(one_of_each, 2)
    assert (tmp_path / "evaluations" / "step-000001" / "scores.json").stat().st_mtime_ns == kept
    assert weights(tmp_path, 2) == weights(one_of_each, 2)


@pytest.mark.slow
def test_engines_that_join_later_evaluate_as_well(one_of_each, tmp_path, grpo_config):
    grpo.train(grpo_config(tmp_path, "rollout.engine.actors.max_count=2"))
    assert [results(tmp_path, step) for step in (1, 2)] == [results(one_of_each, step) for step in (1, 2)]
    assert weights(tmp_path, 2) == weights(one_of_each, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["evaluation.prompt_count=4"],
            "4 prompts, and none of counting, color_attr: .*; raise prompt_count where",
        ),
        (["evaluation.prompt_count=301"], "prompt_count: 301, the benchmark has 300 prompts"),
        (["evaluation.guidance_scale=3", "rollout.engine.max_concurrent=1"], "a guided image takes 2 contexts"),
        (["rollout.engine.max_prompt_tokens=8"], "there is room for 8"),
        (["evaluation.guidance_scale=3", f"evaluation.negative_prompt={'red ' * 90}"], "has 9. tokens, there is room"),
        (["keep_best.metric=evaluation_overal"], "'evaluation_overal' is not logged; there are .*evaluation_overall"),
        (["evaluation=null"], "keep_best.metric: 'evaluation_overall' is not logged; `evaluation` is not set"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_run_begins(tmp_path, overrides, message, grpo_config):
    asked = grpo_config(tmp_path, *overrides)
    with pytest.raises(UserError, match=message):
        Evaluation(asked, asked.rollout.engine)


def test_the_last_step_always_has_one(tmp_path, grpo_config):
    config, other = (
        grpo_config(tmp_path, "steps=7", "evaluation.every=3"),
        grpo_config(tmp_path, "evaluation=null", "keep_best=null"),
    )
    asked = Evaluation(config, config.rollout.engine)
    assert [step for step in range(1, 8) if asked.due(step)] == [3, 6, 7]
    assert not Evaluation(other, other.rollout.engine).due(2)
