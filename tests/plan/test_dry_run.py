"""--dry-run of every configuration, on a machine that has neither their inputs nor their GPUs."""

import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from simplear_rl.cli import MISSING, CommandLine
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.dpo import DpoConfig
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig, SupervisedConfig
from simplear_rl.errors import UserError
from simplear_rl.plan.dry_run import plan_dpo, plan_grpo, plan_supervised

STAGES = {
    "pretrain": (SupervisedConfig, plan_supervised),
    "sft": (SupervisedConfig, plan_supervised),
    "grpo": (GrpoConfig, plan_grpo),
}
# Learner ranks and engines on GPUs of their own, on the four nodes of the other stages.
SEPARATE = (
    "plan.nodes=4",
    "rollout.broadcast=object_store",
    "rollout.engine.type=vllm",
    "rollout.engine.max_concurrent=16",
    "rollout.engine.kv_cache_gib=4",
    "rollout.engine.actors.gpus=1",
    "learner.actors.gpus=1",
    "reward.actors.gpus=1",
    "reference.gpus=1",
)

PLAN = [
    "plan={nodes: 1, gpus_per_node: 1, cpus_per_node: 8, gpu_memory_gib: 80, policy: simplear-0.5b, resolution: 512}"
]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def dry_run(folder, name, *overrides):
    schema, plan = STAGES[name.partition("_")[0]]
    return plan(load_config(schema, CONFIGS / folder / f"{name}.yaml", overrides))


def separate(*overrides):
    dry_run("simplear_0.5b", "grpo_published", *SEPARATE, *overrides)


@pytest.mark.parametrize("folder", ["simplear_0.5b", "simplear_1.5b"])
@pytest.mark.parametrize("stage", STAGES)
def test_full_size_plans(folder, stage, tmp_path, capsys):
    dry_run(folder, stage, f"root={tmp_path / 'nowhere'}")
    shown = capsys.readouterr().out
    tokens = "1,024" if stage == "pretrain" else "4,096"
    assert f"{tokens} tokens an image; assumed: {folder.replace('_', '-')} at" in shown
    nodes = 1 if stage == "grpo" else 4
    assert f"{nodes} x (8 GPUs of 80 GiB, 64 CPUs); assumed (plan)" in shown
    assert "fetched  nvidia/Cosmos-1.0-Tokenizer-DV8x16x16" in shown
    assert f"missing: {tmp_path}/nowhere/data/{'prompts.txt' if stage == 'grpo' else ''}" in shown
    on_first = "8 learner.actors"
    if stage == "grpo":
        on_first += ", 8 rollout.engine.actors, 8 reward.actors, 8 reference"
    assert f"node 0   {on_first}; 0 GPUs idle" in shown
    assert re.search(rf"hours    [\d.]+ for [\d,]+ steps, [\d,.e+]+ GPU-hours on {8 * nodes} GPUs; bottleneck: ", shown)
    assert "assumed: A100 (plan)" in shown
    # 1.5B fits on one GPU as well, where the engine draws its images in two batches.
    assert ("layouts  fewest GPU-hours: 1 GPU shared by all roles" in shown) == (stage == "grpo")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("stage", "paper"),
    [
        ("pretrain", {"rate": 1e-4, "images": 256, "seen": 43_000_064}),
        ("sft", {"rate": 2e-5, "images": 256, "seen": 5_400_064}),
        ("grpo_published", {"rate": 1e-5, "images": 28, "seen": 1572 * 28}),
    ],
)
@pytest.mark.parametrize("folder", ["simplear_0.5b", "simplear_1.5b"])
def test_hyper_parameters_are_the_papers(folder, stage, paper):
    config = load_config(STAGES[stage.partition("_")[0]][0], CONFIGS / folder / f"{stage}.yaml")
    optimizer = config.learner.optimizer
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_steps) == (paper["rate"], "constant", 0)
    assert (optimizer.weight_decay, optimizer.betas, optimizer.decay_norms) == (0.01, (0.9, 0.999), False)
    if stage == "grpo_published":
        images = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    else:
        images = config.data.batch_size
    assert (images, config.steps * images) == (paper["images"], paper["seen"])


@pytest.mark.parametrize(
    ("stage", "override", "message"),
    [
        ("pretrain", "plan.gpu_memory_gib=24", r"24 GiB, 90% .* learner.actors .*16.5 activ.*lower data.micro_batch"),
        ("sft", "plan.nodes=3", r"no node has room for learner.actors-24: .* Lower learner.actors.count"),
        ("grpo", "plan.gpu_memory_gib=24", r"does not hold 1 x learner.actors .* and 1 x rollout.engine.actors"),
        ("grpo", "plan=null", "simplear_0.5b/sft/final: no policy there; .* `plan`, which is not set"),
        ("sft", "plan.gpu=A1000", r"plan.gpu: .*expected one of A100-SXM4-40GB, A100-PCIE-40GB, .*found A1000"),
        ("sft", "plan.measured=nowhere.json", r"nowhere.json: expected a file of .*timings.step --output"),
    ],
)
def test_what_cannot_fit_is_refused(stage, override, message, tmp_path):
    with pytest.raises(UserError, match=message):
        dry_run("simplear_0.5b", stage, f"root={tmp_path}/simplear_0.5b", override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.cpus_per_node=12", r"no node has room for rollout.engine.actors-5: .* 12 CPUs"),
        ("rollout.samples_per_prompt=128", r"does not hold 1 x learner.actors .* rollout.samples_per_prompt"),
        ("rollout.engine.kv_cache_gib=100", r"lower rollout.engine.kv_cache_gib"),
        ("rollout.engine.kv_cache_gib=0.05", r"kv_cache_gib=0.05 .* have room for 1: raise"),
    ],
)
def test_what_cannot_fit_apart_is_refused(override, message, tmp_path):
    with pytest.raises(UserError, match=message):
        separate(f"root={tmp_path}", override)


def test_actors_that_share_a_gpu_are_added_up(tmp_path, capsys):
    shared = ["reward.actors.gpus=0.5", "reference.gpus=0.5", f"root={tmp_path}"]
    separate(*shared)
    assert "node 1   6 rollout.engine.actors, 1 reward.actors, 1 reference; 1 GPUs idle" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"1 x reward.actors .* and 1 x reference .*raise reward.actors.gpus, refer"):
        separate(*shared, "plan.gpu_memory_gib=15")


def test_a_plan_counts_optimizer_steps(tmp_path, capsys):
    more = ["rollout.prompts_per_step=28", "algorithm.minibatches=4", "algorithm.updates_per_batch=2"]
    separate(f"root={tmp_path}", *more)
    assert "4 prompts on each of 7 ranks, optimizer steps: 8 a step" in capsys.readouterr().out


def test_a_plan_of_large_groups_fits_in_micro_batches(tmp_path, capsys):
    large = ["rollout.samples_per_prompt=64", "rollout.engine.max_concurrent=64", f"root={tmp_path}"]
    with pytest.raises(UserError, match=r"For learner.actors lower learner.micro_batch or rollout.samples_per_prompt"):
        dry_run("simplear_1.5b", "grpo_published", *SEPARATE, *large)
    capsys.readouterr()
    dry_run("simplear_1.5b", "grpo_published", *SEPARATE, *large, "learner.micro_batch=4")
    planned = [line for line in capsys.readouterr().out.splitlines() if "learner.actors: " in line]
    dry_run("simplear_1.5b", "grpo_published", *SEPARATE, f"root={tmp_path}")
    assert planned == [line for line in capsys.readouterr().out.splitlines() if "learner.actors: " in line]


def test_a_plan_with_beta_zero_has_no_reference(tmp_path, capsys):
    separate(f"root={tmp_path}", "algorithm.kl.beta=0")
    assert "reference" not in capsys.readouterr().out


def test_a_learner_and_an_engine_that_share_a_gpu_are_placed_together(tmp_path, capsys):
    shared = ["rollout.broadcast=ipc", "learner.actors.gpus=0.5", "rollout.engine.actors.gpus=0.5", f"root={tmp_path}"]
    separate(*shared)
    shown = capsys.readouterr().out
    assert "node 0   7 learner.actors, 7 rollout.engine.actors, 1 reward.actors; 0 GPUs idle" in shown
    assert "node 1   1 reference; 7 GPUs idle" in shown
    with pytest.raises(UserError, match=r"1 x learner.actors .* and 1 x rollout.engine.actors .*raise learner"):
        separate(*shared, "plan.gpu_memory_gib=16")
    with pytest.raises(UserError, match="no node has room for learner.actors and rollout.engine.actors-5"):
        separate(*shared, "plan.cpus_per_node=8", "plan.nodes=5")


FEW_GPUS = [
    ("simplear_0.5b", "grpo_1gpu", 112),
    ("simplear_1.5b", "grpo_1gpu", 56),
    ("simplear_0.5b", "grpo_24gb", 56),
]


@pytest.mark.parametrize(("folder", "name", "at_once"), FEW_GPUS)
def test_one_gpu_or_two_train_what_a_node_does(folder, name, at_once, tmp_path, capsys):
    one, published = (
        load_config(GrpoConfig, CONFIGS / folder / f"{file}.yaml", [f"root={tmp_path}"])
        for file in (name, "grpo_published")
    )
    plan_grpo(one)
    shown = capsys.readouterr().out
    assert "1 learner.actors, 1 rollout.engine.actors, 1 reward.actors, 1 reference; 0 GPUs idle" in shown
    assert f"1 that draw {at_once} unguided images at once each" in shown
    images = one.rollout.prompts_per_step * one.rollout.samples_per_prompt
    assert images == one.algorithm.minibatches * 28
    assert one.algorithm.model_copy(update={"minibatches": 1}) == published.algorithm
    assert one.learner.optimizer == published.learner.optimizer and one.reward.models == published.reward.models
    assert one.prompts == published.prompts and one.steps * images == 1572 * 28


def test_one_gpu_of_24_gb_is_too_small(tmp_path):
    with pytest.raises(UserError, match=r"a GPU of 24 GiB, .* does not hold 1 x learner.actors"):
        dry_run(
            "simplear_0.5b",
            "grpo_1gpu",
            f"root={tmp_path}",
            "plan.gpu_memory_gib=24",
            "rollout.engine.max_concurrent=4",
        )


def test_an_evaluation_is_planned_and_its_files_are_looked_for(tmp_path, capsys):
    asked = ["evaluation.every=100", "evaluation.benchmark=geneval", "evaluation.prompts=${root}/metadata.jsonl"]
    asked += ["evaluation.scorer.gpus=1", f"root={tmp_path}"]
    separate(*asked)
    shown = capsys.readouterr().out
    assert "every 100 steps and after the last: all prompts of geneval x 1 images" in shown
    assert "1 evaluation.scorer" in shown
    assert "evaluation.scorer: 7.8 = 0.3 mask2former-swin-small-coco-instance + 1.6 ViT-L-14-quickgelu + 0.5" in shown
    assert f"missing: {tmp_path}/metadata.jsonl" in shown
    assert "fetched  facebook/mask2former-swin-small-coco-instance" in shown
    separate(*asked, "evaluation.detector.clip=hf-hub:some/clip")
    assert "unknown  size of evaluation's hf-hub:some/clip: not counted" in capsys.readouterr().out


def test_an_evaluation_that_cannot_be_is_refused(world, tmp_path):
    asked = [f"root={world}", f"start={world}/policy", "learner.actors.cpus=0.1"]
    with pytest.raises(UserError, match="4 prompts, and none of counting, color_attr"):
        dry_run("shapes", "grpo", *asked, "evaluation.prompt_count=4")


@pytest.mark.parametrize("stage", STAGES)
def test_the_miniature_world_before_anything_is_made(stage, tmp_path, capsys):
    # As many CPUs as its actors ask for, whatever this machine has.
    assert not dry_run("shapes", stage, f"root={tmp_path}", "learner.actors={count: 1, cpus: 0.1}")
    shown = capsys.readouterr().out
    assert "64 tokens an image; assumed: the embedded world's" in shown
    assert f"made     {tmp_path}/tokenizer by the embedded world" in shown and "missing:" not in shown
    assert "this machine" in shown
    assert "learner.actors: without a GPU, not planned" in shown
    assert re.search(r"hours    [\d.]+ for [\d,]+ steps; bottleneck: \w+, by its ", shown)


def test_a_policy_that_is_there_is_read_and_inputs_are_checked(policy, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa red\u00a0circle\n\n", encoding="utf-8")
    overrides = [f"start={policy}", f"prompts={prompts}", f"root={tmp_path}", "learner.actors.cpus=0.1"]
    dry_run("shapes", "grpo", *overrides)
    assert f"16 tokens an image; {policy}" in capsys.readouterr().out
    prompts.write_text("a red circle\n\na blue square\n")
    with pytest.raises(UserError, match=r"prompts.txt, line 2: empty prompt"):
        dry_run("shapes", "grpo", *overrides)


def test_actors_without_gpus_take_a_cpus_time(world, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    dry_run("shapes", "grpo", f"root={world}")
    assert "assumed: cores of a server with AVX-512" in capsys.readouterr().out


def test_a_score_that_nobody_logs_is_refused(world):
    with pytest.raises(UserError, match="'evaluation_overall' is not logged; `evaluation` is not set"):
        dry_run("shapes", "grpo", f"root={world}", "evaluation=null", "keep_best.metric=evaluation_overall")


def test_the_world_is_planned_with_the_size_that_it_is_made_with(world, capsys):
    for overrides in [f"root={world}"], [f"root={world}", f"start={world}/not-made"]:
        dry_run("shapes", "pretrain", *overrides, "learner.actors.cpus=0.1")
    made, assumed = (line for line in capsys.readouterr().out.splitlines() if line.startswith("policy"))
    assert made.split(";")[0] == assumed.split(";")[0]


def test_a_ray_cluster_comes_first(ray_cluster, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # the fixture's, which this process has joined already
    dry_run("shapes", "pretrain", f"root={tmp_path}")
    assert "1 x (0 GPUs, 8 CPUs); Ray cluster auto" in capsys.readouterr().out
    with pytest.raises(UserError, match="no node has room for learner.actors-0"):
        dry_run("simplear_0.5b", "pretrain", f"root={tmp_path}")


def test_the_exit_status_says_whether_inputs_are_missing(world, tmp_path, capsys):
    made = [f"root={world}", f"start={world}/policy", "learner.actors.cpus=0.1"]
    for status, more in (
        (None, []),
        (MISSING, [f"data.sources=[{{shards: {tmp_path}/none}}]"]),
        (MISSING, [f"tokenizer={tmp_path}/none"]),
        (MISSING, ["world=null", f"start={tmp_path}/none", *PLAN]),
        (None, ["tokenizer=owner/name"]),
    ):
        config = load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", [*made, *more])
        line = CommandLine("pretrain", config, dry_run=True)
        with nullcontext() if status is None else pytest.raises(SystemExit) as stopped:
            line.run(lambda config: pytest.fail("it was started"), dry_run=plan_supervised)
        assert (stopped.value.code if stopped else None) == status
        assert ("missing: " in capsys.readouterr().out) == bool(status)


def test_the_command_starts_nothing(tmp_path):
    command = [sys.executable, "-m", "simplear_rl.sft", "--config", "configs/simplear_0.5b/sft.yaml", "--dry-run"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    shown = subprocess.run(
        [*command, f"root={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=environment,
        timeout=120,
    )
    assert (shown.returncode, shown.stderr) == (MISSING, "")
    assert "8 learner.actors" in shown.stdout
    assert list(tmp_path.iterdir()) == []


def test_actors_that_may_join_need_no_place(tmp_path, capsys):
    shown = []
    for more in [], ["rollout.engine.actors.max_count=1000", "reward.actors.max_count=1000"]:
        separate(f"root={tmp_path}", *more)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


def test_dpo_of_full_size(tmp_path, capsys):
    config = load_config(DpoConfig, CONFIGS / "simplear_0.5b" / "dpo.yaml", [f"root={tmp_path / 'nowhere'}"])
    missing = plan_dpo(config)
    assert missing == [tmp_path / "nowhere" / name for name in ("sft/final", "data/pairs")]
    shown = capsys.readouterr().out
    assert "2,000 of 128 pairs, 16 on each of 8 ranks, one after the other" in shown
    assert "node 0   8 learner.actors, 8 reference; 0 GPUs idle" in shown
    assert re.search(r"time     [\d.]+ s a step: reference [\d.]+, update [\d.]+; assumed: A100 \(plan\)", shown)
    assert re.search(r"hours    [\d.]+ for 2,000 steps, [\d,.e+]+ GPU-hours on 8 GPUs; bottleneck: update", shown)
    assert not (tmp_path / "nowhere").exists()


def test_drawn_pairs_take_engines_and_more_images_a_pass(tmp_path, capsys):
    file, root = CONFIGS / "shapes" / "dpo_online.yaml", f"root={tmp_path / 'nowhere'}"
    assert plan_dpo(load_config(DpoConfig, file, [root])) == []  # the embedded world makes all of them
    shown = capsys.readouterr().out
    assert "150 of 12 prompts x 8 = 96 images, up to 2 of a prompt in pairs" in shown
    assert "engines  1 that draw 96 unguided images at once each" in shown
    assert re.search(r"a step: rollout [\d.]+.*, reference [\d.]+, update [\d.]+, weights [\d.e-]+; ", shown)
    plan_dpo(load_config(DpoConfig, file, [root, "algorithm.margin=0.1"]))
    assert "up to 8 of a prompt in pairs" in capsys.readouterr().out
