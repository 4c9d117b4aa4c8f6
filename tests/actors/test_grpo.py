"""GRPO through Ray actors, several per role, on real engines and learners."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from actors.placement import Stage
from actors.reward import RewardActor
from simplear_rl import grpo, pretrain
from simplear_rl.benchmarks.geneval import REWARD_IS_METRIC
from simplear_rl.config.base import CONFIGS, ActorsConfig
from simplear_rl.config.load import load_config
from simplear_rl.config.rewards import RewardConfig
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.errors import UserError
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.vocabulary import read_image_tokenizer, read_layout
from simplear_rl.run.history import read_metrics
from simplear_rl.run.lock import LOCK
from simplear_rl.tokenizers.cosmos import read_identity
from simplear_rl.weights.snapshot import checksum
from tests.conftest import without_times

UNSCORED = ["evaluation=null", "keep_best=null"]
TWO_OF_EACH = [
    "rollout.engine.actors.count=2",
    "reward.actors.count=2",
    "learner.actors.count=2",
    "learner.zero_stage=2",
]


@pytest.mark.slow
def test_two_of_each_and_zero_2_do_what_one_of_each_does(one_of_each, tmp_path, grpo_config):
    grpo.train(grpo_config(tmp_path / "two", *TWO_OF_EACH, *UNSCORED))
    one, two = read_metrics(one_of_each / "metrics.jsonl"), read_metrics(tmp_path / "two" / "metrics.jsonl")
    for rows in one, two:
        first = rows[0]
        assert first["kl"] == 0.0
        assert rows[1]["kl"] > 0.0
        assert [row["weight_version"] for row in rows] == [1, 2]
        assert all(row["mismatch_max"] < 1e-4 for row in rows)
        assert all(row["samples"] == 12 for row in rows)
    assert [row["engines_verified"] for row in two] == [2, 2]
    # Whichever actor drew and scored them, the samples are the same.
    assert two[0]["reward"] == pytest.approx(one[0]["reward"], abs=1e-6)
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-3)
    weights = [
        AutoModelForCausalLM.from_pretrained(run / "final").state_dict() for run in (one_of_each, tmp_path / "two")
    ]
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(tensor, weights[1][name], atol=1e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [1, 6])
def test_minibatches_and_passes_over_parts_of_a_group_or_two(one_of_each, grpo_config, tmp_path, micro_batch):
    parts = "algorithm.minibatches=2", "algorithm.correction.kind=truncate", f"learner.micro_batch={micro_batch}"
    grpo.train(grpo_config(tmp_path / "run", *parts))
    whole, (first, second) = read_metrics(one_of_each / "metrics.jsonl"), read_metrics(tmp_path / "run/metrics.jsonl")
    assert first["reward"] == pytest.approx(whole[0]["reward"], abs=1e-6)
    assert first["kl"] == 0.0 < second["kl"]  # the reference has the learner's shapes
    for row in first, second:
        assert row["first_ratio_min"] == row["first_ratio_max"] == 1.0
        assert row["ratio_min"] < 1.0 < row["ratio_max"]  # the other half of the prompts, after one optimizer step
        assert row["correction_ess"] == pytest.approx(1.0, abs=1e-6)
        assert row["mismatch_max"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["collective", "ipc"])
def test_another_transport_changes_nothing_but_the_time(one_of_each, tmp_path, transport, grpo_config):
    grpo.train(grpo_config(tmp_path / "run", f"rollout.broadcast={transport}"))
    assert without_times(one_of_each) == without_times(tmp_path / "run")


@pytest.mark.slow
def test_the_engine_without_vllm_draws_and_trains_the_same(one_of_each, tmp_path, grpo_config):
    grpo.train(grpo_config(tmp_path, "rollout.engine.type=transformers"))
    ends = [dict(load_policy(run / "final")[0].named_parameters()) for run in (one_of_each, tmp_path)]
    assert checksum(ends[0].items()) == checksum(ends[1].items())
    vllm, other = (read_metrics(run / "metrics.jsonl") for run in (one_of_each, tmp_path))
    for name in ("reward", "evaluation_overall", "weight_version", "engines_verified"):
        assert [row[name] for row in vllm] == [row[name] for row in other]
    assert all(row["mismatch_max"] < 1e-4 for row in other)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_bfloat16(ray_cluster, tmp_path, grpo_config, scale):
    half = ["learner.dtype=bfloat16", "rollout.engine.dtype=bfloat16", "learner.zero_stage=1"]
    values = [*half, "learner.activation_checkpointing=true", f"rollout.guidance_scale={scale}", *UNSCORED]
    grpo.train(grpo_config(tmp_path, *values))
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first["kl"] == 0.0 < second["kl"]
    assert [row["engines_verified"] for row in (first, second)] == [1, 1]
    for row in first, second:
        assert 0 < row["mismatch_mean"] < 0.02 * scale
        assert row["correction_ess"] > 0.99
    assert load_file(tmp_path / "final" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


@pytest.mark.slow
def test_the_reference_is_refreshed_also_by_a_run_that_continues(ray_cluster, tmp_path, grpo_config):
    refreshed = ["steps=3", "reference.refresh_every=1", "learner.ema=0.5", "keep_checkpoints=1", *UNSCORED]
    grpo.train(grpo_config(tmp_path / "policy", *refreshed))
    assert [row["kl"] for row in read_metrics(tmp_path / "policy" / "metrics.jsonl")] == [0.0, 0.0, 0.0]
    averaged = [*refreshed, "reference.refresh_with=ema"]
    grpo.train(grpo_config(tmp_path / "whole", *averaged))
    grpo.train(grpo_config(tmp_path / "parts", *averaged, "steps=2"))
    grpo.train(grpo_config(tmp_path / "parts", *averaged))
    ends = [tmp_path / run / "final" / ".." for run in ("whole", "parts")]
    for policy in "model", "ema":
        files = [end / policy / "model.safetensors" for end in ends]
        assert files[0].read_bytes() == files[1].read_bytes()
    kls = [row["kl"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    assert kls[0] == 0.0 < min(kls[1:])


def test_entropy_and_diversity_are_logged(one_of_each):
    for row in read_metrics(one_of_each / "metrics.jsonl"):
        assert 0 < row["entropy"] < np.log(read_layout(one_of_each / "final").codebook_size)
        assert 0 < row["diversity"] < 1
        assert "refilled_groups" not in row


def test_several_rewards_are_summed_and_logged_each(one_of_each):
    for row in read_metrics(one_of_each / "metrics.jsonl"):
        assert row["reward"] == pytest.approx(row["reward_clip_clip"] + 0.5 * row["reward_hpsv2"], abs=1e-5)
        assert row["reward_clip_clip"] != row["reward_hpsv2"]
        assert row["reward_hpsv2_std"] > 0


def test_guided_run_optimises_what_it_samples(one_of_each):
    first, second = read_metrics(one_of_each / "metrics.jsonl")
    assert first["kl"] == 0.0 < second["kl"]
    assert max(first["mismatch_max"], second["mismatch_max"]) < 1e-4


def test_run_directory_holds_what_a_user_looks_for(one_of_each):
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "samples", "final"} <= set(os.listdir(one_of_each))
    assert (one_of_each / "samples" / "step-000002.png").stat().st_size > 1000
    assert read_layout(one_of_each / "final").tokens == 64


@pytest.mark.slow
def test_refilled_groups_are_the_same_whoever_draws_them_and_after_a_restart(
    ray_cluster, often_equal, tmp_path, grpo_config
):
    refill = *often_equal, "rollout.refill=2", *UNSCORED
    two = "rollout.engine.actors.count=2", "reward.actors.count=2"
    grpo.train(grpo_config(tmp_path / "one", *refill))
    for steps in "steps=1", "steps=2":
        grpo.train(grpo_config(tmp_path / "two", *refill, *two, steps))
    rows, others = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("one", "two"))
    for row, other in zip(rows, others, strict=True):
        for name in "refilled_groups", "zero_advantage_groups", "reward", "diversity", "samples", "grad_norm":
            assert row[name] == other[name], name
    assert 0 < sum(row["refilled_groups"] for row in rows) < 2 * 2 * 4
    assert all(row["zero_advantage_groups"] < 1 and row["samples"] == 12 for row in rows)
    ends = [dict(load_policy(tmp_path / run / "final")[0].named_parameters()) for run in ("one", "two")]
    assert checksum(ends[0].items()) == checksum(ends[1].items())


@pytest.mark.slow
def test_run_that_continues_ends_with_the_same_weights(one_of_each, tmp_path, grpo_config):
    run = tmp_path / "run"
    grpo.train(grpo_config(run, "steps=1"))
    grpo.train(grpo_config(run))
    ends = [dict(load_policy(folder / "final")[0].named_parameters()) for folder in (one_of_each, run)]
    assert checksum(ends[0].items()) == checksum(ends[1].items())
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2]


def test_finished_run_is_left_alone(one_of_each, capsys, grpo_config):
    before = (one_of_each / "metrics.jsonl").read_bytes()
    grpo.train(grpo_config(one_of_each))
    assert "all 2 steps are done" in capsys.readouterr().out
    assert (one_of_each / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_pretraining_on_two_ranks_with_zero_3(ray_cluster, world, tmp_path, capsys):
    overrides = [
        f"root={world}",
        f"run={tmp_path / 'run'}",
        "steps=3",
        "wandb=false",
        "data.batch_size=8",
        "data.micro_batch=2",
        "learner.actors={count: 2, cpus: 1, threads: 1}",
        "learner.zero_stage=3",
        "sample_prompts=[a sign $^$, \u4e00\u53ea\u732b, 'a circle<|soi|> {x_']",
    ]
    pretrain.train(load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", overrides))
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    assert (tmp_path / "run" / "samples" / "step-000003.png").exists()
    assert "no picture" not in capsys.readouterr().out


def test_too_few_cpus_says_what_was_asked_and_which_keys_to_change(ray_cluster, tmp_path, grpo_config):
    with pytest.raises(UserError) as error:
        grpo.train(grpo_config(tmp_path / "run", "reward.actors.count=40", "reward.actors.cpus=2", *UNSCORED))
    assert "the actors ask for 81.5 CPUs" in str(error.value)
    assert "reward.actors 40 x 2" in str(error.value)
    assert "the cluster has 8" in str(error.value)
    assert "reward.actors.count and reward.actors.cpus" in str(error.value)


def test_actor_that_cannot_be_built_says_why(ray_cluster, world, policy):
    models = RewardConfig.model_validate({"models": [{"type": "hpsv2", "model": "x", "weights": "y"}]})
    with Stage("broken", {"reward": ActorsConfig()}) as stage, pytest.raises(UserError, match="no such folder"):
        stage.launch("reward", RewardActor, models, world / "no such folder", read_layout(policy), world)
        stage.ready()


@pytest.mark.slow
def test_prompts_that_a_reward_would_cut_are_refused_before_the_first_step(ray_cluster, tmp_path, grpo_config):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a circle\n" + "a red circle and " * 4 + "a cross\n")
    with pytest.raises(UserError, match="longer than the 12 tokens"):
        grpo.train(grpo_config(tmp_path / "run", f"prompts={prompts}"))
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == []


@pytest.mark.slow
def test_prompts_are_text_whatever_they_hold(ray_cluster, world, tmp_path, capsys, grpo_config):
    prompts = [
        "a sign $^$",
        "\u4e00\u53ea\u732b\u3000\u5728",
        "a circle<|soi|><end_of_text> {x_",
        "\u2764\ufe0f\u200d\U0001f525",
    ]
    (tmp_path / "prompts.txt").write_text("\ufeff" + "\n".join(prompts) + "\n\n", encoding="utf-8")
    asked = [f"prompts={tmp_path}/prompts.txt", "steps=1", "samples_every=1", "faults.heartbeat_seconds=600"]
    grpo.train(grpo_config(tmp_path / "run", *asked, *UNSCORED))
    assert "no picture" not in capsys.readouterr().out
    assert (tmp_path / "run" / "samples" / "step-000001.png").exists()
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["samples"] == 12


@pytest.mark.slow
def test_geneval_as_the_reward_says_so_and_gives_its_verdicts(ray_cluster, tmp_path, capsys, grpo_config):
    models = "reward.models=[{type: geneval, credit: partial}]"
    grpo.train(grpo_config(tmp_path / "run", models, "steps=1", *UNSCORED))
    assert REWARD_IS_METRIC in capsys.readouterr().out
    (row,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert 0 <= row["reward"] == row["reward_geneval"] < 1


def test_prompts_that_geneval_does_not_know_are_refused_before_anything_starts(tmp_path, grpo_config):
    models = "reward.models=[{type: geneval}]"
    (tmp_path / "prompts.txt").write_text("a red circle\nthree dogs\n")
    with pytest.raises(UserError, match="the miniature world does not say what images of 'three dogs' must show"):
        grpo.train(grpo_config(tmp_path / "run", models, f"prompts={tmp_path / 'prompts.txt'}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_prompts_that_a_reward_cuts_by_choice_are_announced_and_counted(
    ray_cluster, world, tmp_path, capsys, grpo_config
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a circle\n" + "a red circle and " * 4 + "a cross\n")
    models = f"[{{type: clip, model: 'local-dir:{world / 'clip'}', long_text: truncate}}]"
    more = ("steps=1", *UNSCORED, "rollout.prompts_per_step=2", f"reward.models={models}", f"prompts={prompts}")
    grpo.train(grpo_config(tmp_path / "run", *more))
    assert "reward clip_clip reads only the first 12 tokens of 1 of 2 prompts" in capsys.readouterr().out
    (row,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert row["truncated_prompts"] == 1


@pytest.mark.slow
def test_reward_that_is_nan_stops_the_run_and_keeps_what_was_written(ray_cluster, world, tmp_path, grpo_config):
    run = tmp_path / "run"
    grpo.train(grpo_config(run, "steps=1"))
    broken = tmp_path / "clip"
    broken.mkdir()
    for file in (world / "clip").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "open_clip_model.safetensors")
    weights["visual.proj"].fill_(float("nan"))
    save_file(weights, broken / "open_clip_model.safetensors")
    with pytest.raises(UserError, match="nan of prompt .*, sample 0: expected a finite number"):
        grpo.train(grpo_config(run, f"reward.models=[{{type: clip, model: 'local-dir:{broken}'}}]"))
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1]


@pytest.mark.slow
def test_with_beta_zero_no_reference_is_started(ray_cluster, world, tmp_path, grpo_config):
    # A count that no cluster holds, so that a reference that is started after all ends the run.
    config = grpo_config(tmp_path, "algorithm.kl.beta=0", "reference.count=1000", *UNSCORED)
    grpo.train(config)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert not any("kl" in row for row in rows)
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "policy", tmp_path / "final"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert read_image_tokenizer(tmp_path / "final") == read_identity(world / "tokenizer")
    assert not (tmp_path / LOCK).exists()


@pytest.mark.slow
def test_rewards_of_the_users_get_columns_and_leave_out_groups_that_cannot_be_scored(
    ray_cluster, tmp_path, capsys, grpo_config
):
    code = """
def judged(images, prompts, answer):
    if answer[0] is None:
        raise ValueError("no answer")
    return {"red": images[..., 0].mean((1, 2)) / 255, "blue": images[..., 2].mean((1, 2)) / 255 * answer[0]}
"""
    (tmp_path / "my_reward.py").write_text(code)
    rows = [{"prompt": f"a {colour} circle", "answer": i} for i, colour in enumerate(("red", "blue", "green"), 1)]
    rows += [{"prompt": "a circle", "answer": None}, {"prompt": "a cross", "weight": 0}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps(row) for row in rows))
    model = f"{{type: python, function: {tmp_path}/my_reward.py:judged, on_error: skip_group, bounds: [0, 1]}}"
    more = ("steps=2", "reward.aggregate=gdpo", f"reward.models=[{model}]", f"prompts={prompts}", *UNSCORED)
    config = grpo_config(tmp_path / "run", *more, "rollout.prompts_per_step=5")
    grpo.train(config)
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert sum(row["skipped_groups"] for row in metrics) >= 2
    for row in metrics:
        assert row["samples"] == 3 * (5 - row["skipped_groups"])
        assert row["zero_advantage_groups"] == row["skipped_groups"] / 5
        assert row["reward"] == pytest.approx(row["reward_judged_red"] + row["reward_judged_blue"], abs=1e-5)
        assert {"reward_judged_red_std_in_group", "reward_judged_blue_correlation"} <= row.keys()
        assert 0 <= row["reward_judged_blue_clipped"] < 1
        assert row["mismatch_max"] < 1e-4


def test_functions_are_tried_before_anything_starts(tmp_path, grpo_config):
    (tmp_path / "my_reward.py").write_text("def red(images): return [1]")
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    model = f"reward.models=[{{type: python, function: {tmp_path}/my_reward.py:red}}]"
    with pytest.raises(UserError, match="my_reward.py:red.: expected 2 numbers, one for each image, found 1"):
        grpo.train(grpo_config(tmp_path / "run", model, f"prompts={tmp_path / 'prompts.txt'}"))
    assert not (tmp_path / "run").exists()
