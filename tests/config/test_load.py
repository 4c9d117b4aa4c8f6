from pathlib import Path

import pytest
import yaml

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.data import TokenizeConfig
from simplear_rl.config.dpo import DpoConfig
from simplear_rl.config.generate import GenerateConfig
from simplear_rl.config.keys import known_keys
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig, SupervisedConfig
from simplear_rl.errors import UserError

GRPO = CONFIGS / "shapes" / "grpo.yaml"
SCHEMAS = {
    "tokenize": TokenizeConfig,
    "pretrain": SupervisedConfig,
    "sft": SupervisedConfig,
    "grpo": GrpoConfig,
    "evaluate": EvaluateConfig,
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_file_is_an_instance_of_its_schema(name):
    assert load_config(SCHEMAS[name], CONFIGS / "shapes" / f"{name}.yaml").world == "shapes"


@pytest.mark.parametrize("benchmark", ["geneval", "dpg"])
def test_every_benchmark_has_its_file(benchmark):
    config = load_config(EvaluateConfig, CONFIGS / benchmark / "evaluate.yaml")
    assert (config.benchmark, config.images_per_prompt, config.guidance_scale) == (benchmark, 4, 6)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("questions=null", "`questions` is needed"),
        ("images_per_prompt=2", "grids hold 4 images, found 2"),
        ("score_only=/images", "`image_size` is needed"),
    ],
)
def test_dpg_needs_questions_and_grids_of_four(override, message):
    with pytest.raises(UserError, match=message):
        load_config(EvaluateConfig, CONFIGS / "dpg" / "evaluate.yaml", [override])


def test_root_is_filled_in_and_a_section_can_be_one_override(tmp_path):
    config = load_config(GrpoConfig, GRPO, [f"root={tmp_path}", "algorithm.kl.beta=0.5", "reward.actors={count: 3}"])
    assert config.start == tmp_path / "sft" / "final"
    assert config.algorithm.kl.beta == 0.5
    assert config.reward.actors.count == 3
    assert config.reward.files == [tmp_path / "clip"]


@pytest.mark.parametrize(
    "text",
    [
        "**/*.tar",
        "*.tar",
        "set #2",
        "010",
        "12:30",
        "off",
        "a: b",
        "[x] y.txt",
        "{a",
        "- a",
        "&a",
        "!x",
        "'q'",
        "@",
        "%",
    ],
)
def test_text_and_paths_are_taken_as_they_stand(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    values = ["input=in", f"files={text}", f"output={text}", f"root={text}"]
    config = load_config(TokenizeConfig, CONFIGS / "shapes" / "tokenize.yaml", values)
    assert config.files == text
    assert config.output == config.root == tmp_path / text
    assert load_config(GrpoConfig, GRPO, [f"prompts={text}", f"keep_best.metric={text}"]).keep_best.metric == text


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("learner.optimizer.learning_rate", "1e-4", 1e-4),
        ("learner.optimizer.learning_rate", "3.0e-4", 3e-4),
        ("learner.optimizer.learning_rate", "2", 2.0),
        ("learner.zero_stage", "2", 2),
        ("seed", "010", 10),
        ("steps", "4.0", 4),
        ("wandb", "false", False),
        ("wandb", "off", False),
        ("keep_every", "null", None),
        ("keep_best", "null", None),
        ("world", "null", None),
        ("reference.max_count", "3", 3),
        ("learner.dtype", "float32", "float32"),
    ],
)
def test_values_are_parsed_by_the_type_of_their_key(key, text, value):
    found = load_config(GrpoConfig, GRPO, ["keep_every=5", f"{key}={text}"])
    for name in key.split("."):
        found = getattr(found, name)
    assert (found, type(found)) == (value, type(value))


def test_text_stays_text_within_sections_and_lists():
    models = "reward.models=[{type: clip, model: 010, weights: 12:30, weight: 2}, {type: geneval, metadata: null}]"
    clip, geneval = load_config(GrpoConfig, GRPO, [models]).reward.models
    assert (clip.model, clip.weights, clip.weight, geneval.metadata) == ("010", "12:30", 2.0, None)
    captions = "sample_prompts=[off, 010, 2001-01-01, \"null\", a: b, '[x]']".replace("a: b", "'a: b'")
    config = load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", [captions])
    assert config.sample_prompts == ["off", "010", "2001-01-01", "null", "a: b", "[x]"]


def test_paths_may_hold_any_spaces(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(GrpoConfig, GRPO, ["run=a\u00a0b\u3000c"]).run == tmp_path / "a\u00a0b\u3000c"


def test_published_rewards_are_one_override_each(tmp_path):
    """The two arms of docs/rewards.md."""
    for reward, name in ("clip, weights: laion2b_s32b_b79k", "clip_ViT-H-14"), ("hpsv2, weights: v2.1", "hpsv2"):
        override = f"reward.models=[{{type: {reward}, model: ViT-H-14}}]"
        config = load_config(GrpoConfig, GRPO, [f"root={tmp_path}", "run=${root}/grpo-x", override])
        assert config.run == tmp_path / "grpo-x"
        assert [model.name for model in config.reward.models] == [name]
        assert config.reward.files == []


def test_geneval_as_a_reward_needs_metadata_outside_the_miniature_world(tmp_path):
    values = [f"root={tmp_path}", "reward.models=[{type: geneval}]"]
    assert load_config(GrpoConfig, GRPO, values).reward.files == []
    with pytest.raises(UserError, match="a geneval reward needs `metadata`"):
        load_config(GrpoConfig, GRPO, [*values, "world=null"])
    values[1] = "reward.models=[{type: geneval, metadata: '${root}/m.jsonl', detector: {dtype: float16}}]"
    config = load_config(GrpoConfig, GRPO, [*values, "world=null"])
    assert config.reward.files == [tmp_path / "m.jsonl", Path("facebook/mask2former-swin-small-coco-instance")]
    # A run's config.yaml, where every key stands, is a configuration again.
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(GrpoConfig, tmp_path / "config.yaml") == config


def test_weights_in_a_file_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hps.pt").touch()
    (model,) = load_config(
        GrpoConfig, GRPO, ["reward.models=[{type: hpsv2, model: ViT-H-14, weights: hps.pt}]"]
    ).reward.models
    assert model.weights == str(tmp_path / "hps.pt")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.zero_stag=1", "learner.zero_stag: unknown key; did you mean learner.zero_stage"),
        ("zero_stage=1", "did you mean learner.zero_stage"),
        ("reward.models=[{type: clip, model: x, wieght: 2}]", "did you mean reward.models.weight"),
        ("steps=many", "steps: Input should be a valid integer, .* found 'many'"),
        ("steps=0", "greater than or equal to 1, found 0"),
        ("learner.zero_stage=4", "learner.zero_stage: .* found 4"),
        ("steps", "an override is written key=value"),
        ("steps.x=1", "steps is not a section"),
        ("steps=[", r"steps: Input should be a valid integer, .* found '\['"),
        ("learner.actors={count: 2", "learner.actors: expected a section, {key: value, ...}; not YAML"),
        ("reward.models=[", r"reward.models: expected a list, \[value, ...\]; not YAML"),
        ("learner.actors=2", "learner.actors: expected a section, .* found '2'"),
        ("steps=true", "steps: Input should be a valid integer, .* found 'true'"),
        ("steps=null", "steps: Input should be a valid integer, .* found 'null'"),
        ("start=", "start: expected a path, found nothing"),
        ("wandb=maybe", "wandb: Input should be a valid boolean, .* found 'maybe'"),
        ("world=off", "world: Input should be 'shapes', found 'off'"),
        ("rollout.samples_per_prompt=1", "greater than or equal to 2, found 1"),
        ("learner.actors.count=5", r"prompts_per_step \(12\) must be a multiple of learner.actors.count \(5\)"),
        ("reward.models=[{type: hpsv2, model: ViT-H-14}]", "reward.models.0.weights: missing"),
        (
            "reward.models=[{type: clip, model: ViT-H-14}]",
            "ViT-H-14: an open_clip name needs `weights`, .* found .* None",
        ),
        ("reward.models=[{type: clip, model: hf-hub:a/b, weights: c}]", "hf-hub: bring their own; found weights c"),
        (
            "reward.models=[{type: geneval, credit: partial, preprocess: simplear}]",
            "reward.models.0.preprocess: unknown key of type geneval; did you mean reward.models.",
        ),
        (
            "reward.models=[{type: clip, model: hf-hub:a/b, credit: partial}]",
            "reward.models.0.credit: unknown key of type clip",
        ),
        ("reward.models=[{type: clip}]", "reward.models.0.model: missing"),
        ("reward.models=[{type: geneval, detector: {dtype: float16}}]", "`detector` is for `metadata`"),
        ("reward.models=[{type: geneval, metadata: m, detector: {dtipe: x}}]", "did you mean reward.models.detector.d"),
        (
            "reward.models=[{type: clip, model: hf-hub:a/x}, {type: clip, model: hf-hub:b/x}]",
            "called the same in metrics: clip_x, clip_x",
        ),
        ("reward.models=[]", "at least 1 item"),
        ("reward.models=[{model: x}]", "reward.models.0.type: missing"),
        ("reward.models=[{type: geneval, detector: {dtype: int8}}]", "reward.models.0.detector.dtype: .* found 'int8'"),
        (
            "rollout.engine={type: transformers, batch_invariant: true}",
            "rollout.engine: batch_invariant: the engine transformers has no such kernels; set type to vllm",
        ),
        ("rollout.engine.type=sjd", "rollout.engine: expected vllm or transformers: sjd does not"),
        ("steps=99999999999999999999999", "steps: .*less than 2147483648"),
        ("root=" + "x" * 300, r"root: a path too long for any file: /.*xx\.\.\.$"),
        ("run=" + "x/" * 4000, r"run: a path too long for any file: /.*/x/?\.\.\.$"),
        ("tokenizer=" + "x" * 300, "tokenizer: a path too long for any file"),
        ("learner.actors=/proc", r"learner.actors: expected a section, \{key: value, ...\}, found '/proc'"),
        ("steps=" + "x" * 70_000, r"steps: .*, found 'x{199}\.\.\.$"),
        ("root=a\0b", r"root: control characters in the path 'a\\x00b'"),
        ("rollout.engine.dtype=bfloat16", r"rollout.engine.dtype \(bfloat16\) must be learner.dtype \(float32\)"),
        ("learner.dtype=bfloat16", r"found learner.zero_stage 0: set learner.zero_stage to 1"),
        ("reference.refresh_every=70", r"reference.refresh_every \(70\) must be a multiple of checkpoint_every \(50\)"),
        ("reference={refresh_every: 100, refresh_with: ema}", "there is no average; set learner.ema"),
        ("algorithm.unconditional_gradient=false", "no such context without guidance; set rollout.guidance_scale"),
        ("rollout.guidance_scale=0", "rollout.guidance_scale: .* greater than 0"),
        (
            "rollout={prompts_per_step: 4, samples_per_prompt: 2, broadcast: collective, engine: {actors: {gpus: 0.5}}}",  # noqa: E501
            "NCCL needs a GPU of its own .* learner.actors.gpus 0, rollout.engine.actors.gpus 0.5",
        ),
        (
            "rollout={prompts_per_step: 4, samples_per_prompt: 2, broadcast: ipc, engine: {actors: {count: 2}}}",
            "learner.actors.count 1, rollout.engine.actors.count 2: set both to the same",
        ),
        (
            "rollout={prompts_per_step: 4, samples_per_prompt: 2, broadcast: ipc, engine: {actors: {gpus: 1}}}",
            "share a GPU, found learner.actors.gpus 0, rollout.engine.actors.gpus 1: reserve fractions",
        ),
    ],
)
def test_bad_values_name_the_key_and_what_was_found(override, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(GrpoConfig, GRPO, [override])
    assert "grpo.yaml" in str(error.value) or override in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.shards=x", "data.shards: unknown key; did you mean data.sources.shards"),
        ("data.sources=[]", "data.sources: .* at least 1 item"),
        ("data.sources=[{shards: x, weight: 0}]", "data.sources.0.weight: .* greater than 0, found 0"),
        ("data.long_caption=drop", "data.long_caption: .*'refuse' or 'truncate', found 'drop'"),
    ],
)
def test_bad_data_settings_are_named(override, message):
    with pytest.raises(UserError, match=message):
        load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "expected keys and values, found list"),
        ("a: [", "not a readable YAML"),
        ("seed: 1\n", "root: missing"),
        ("seed: 1\nlearner: {}\nseed: 2\n", "line 3: `seed` stands there twice, first in line 1"),
        ("root: r\nreward:\n  models: [{type: a, type: b}]\n", "line 3: `type` stands there twice"),
        ("root: r\nseed: !!python/name:os.system\n", "line 2: .*os.system: no such type of value"),
        ("root: r\nseed: yes\n", "seed: .* valid integer, .* found 'yes'"),
        ("root: r\nreward.models: []\n", "dots are for the command line; here `reward:` and below it `  models: ...`"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_config(GrpoConfig, file)
    assert str(file) in str(error.value)


def test_an_override_changes_one_place_of_a_part_that_several_share(tmp_path):
    actors, file = "actors: {count: 1, cpus: 0.25}", tmp_path / "c.yaml"
    first, second, rest = GRPO.read_text(encoding="utf-8").split(actors)  # of engines, and of rewards
    file.write_text(f"{first}actors: &shared {{count: 1, cpus: 0.25}}{second}actors: *shared{rest}", encoding="utf-8")
    config = load_config(GrpoConfig, file, ["rollout.engine.actors.cpus=0.5"])
    assert (config.rollout.engine.actors.cpus, config.reward.actors.cpus) == (0.5, 0.25)


@pytest.mark.parametrize("text", ["{type: a, type: b}", "[{type: clip, type: hps}]"])
def test_a_key_that_stands_twice_in_an_override_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="`type` stands there twice"):
        load_config(GrpoConfig, GRPO, [f"root={tmp_path}", f"reward.models={text}"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner.actors.gpus=2"], "a rank computes on one GPU: set it to 1"),
        (["learner.actors={count: 2, gpus: 0.5}"], "Ray would put two ranks on a GPU, which NCCL refuses"),
        (["learner.optimizer.betas=[0.9, 1.0]"], "less than 1"),
        (["learner.ema=1"], "less than 1"),
    ],
)
def test_learners_that_cannot_be_are_refused(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(GrpoConfig, GRPO, [f"root={tmp_path}", *overrides])


def test_ranks_that_share_with_their_engines_have_gpus_of_their_own(tmp_path):
    shared = ["rollout.broadcast=ipc", "rollout.engine.actors={count: 2, gpus: 0.3}"]
    load_config(GrpoConfig, GRPO, [f"root={tmp_path}", "learner.actors={count: 2, gpus: 0.5}", *shared])
    with pytest.raises(UserError, match="two ranks on a GPU"):
        load_config(GrpoConfig, GRPO, [f"root={tmp_path}", "learner.actors={count: 2, gpus: 0.2}", *shared])


def test_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        load_config(GrpoConfig, "nowhere.yaml")


def test_paths_are_absolute_since_actors_work_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(GrpoConfig, GRPO, ["root=r", "start=here/policy", "prompts=~/prompts.txt"])
    assert config.start == tmp_path / "here" / "policy"
    assert config.prompts == Path.home() / "prompts.txt"
    assert config.tokenizer == tmp_path / "r" / "tokenizer"


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/a/b", "hf://datasets/owner/name"])
def test_addresses_are_no_paths(tmp_path, address):
    for key in "root", "run", "tokenizer":
        with pytest.raises(UserError, match=f"{key}.*{address}: an address; expected a path: mount it, or copy it"):
            load_config(GrpoConfig, GRPO, [f"root={tmp_path}", f"{key}={address}"])


def test_known_keys_reach_into_lists():
    assert {"steps", "learner.optimizer.learning_rate", "reward.models.weight"} <= set(known_keys(GrpoConfig))


def test_values_of_a_file_are_read_as_those_of_overrides(tmp_path):
    """YAML itself would make a truth, a date, a number, and 8 of the first ones."""
    file = tmp_path / "c.yaml"
    values = "prompts: yes\npolicy: 2026-01-02\nnegative_prompt: 7\nseed: 010\ntop_p: 1e-1\nkv_cache_gib: ~\n"
    file.write_text(f"tokenizer: t\noutput: o\n{values}guidance_scale: &three 3\ntemperature: *three\n")
    config = load_config(GenerateConfig, file)
    assert (config.prompts, str(config.policy), config.negative_prompt) == ("yes", "2026-01-02", "7")
    assert (config.seed, config.top_p, config.kv_cache_gib, config.temperature) == (10, 0.1, None, 3)


def test_a_section_may_be_merged_into_another(tmp_path):
    file = tmp_path / "c.yaml"
    text = GRPO.read_text().replace("scorer: {count: 1, cpus: 0.25}", "scorer: &few {count: 1, cpus: 0.5}")
    file.write_text(text.replace("reference: {count: 1, cpus: 0.25,", "reference: {<<: *few,"))
    assert load_config(GrpoConfig, file).reference.cpus == 0.5


@pytest.mark.parametrize(
    ("schema", "overrides", "message"),
    [
        (
            GrpoConfig,
            ["reward.actors={count: 3, max_count: 2}"],
            r"reward.actors: max_count \(2\) must be at least count",
        ),
        (GrpoConfig, ["learner.actors.max_count=2"], "learner.actors.max_count: unknown key"),
        (GrpoConfig, ["rollout.broadcast=ipc", "rollout.engine.actors.max_count=2"], "has no learner to share memory"),
        (EvaluateConfig, ["engine.actors.max_count=2"], "an evaluation shares its prompts out once"),
    ],
)
def test_only_pools_of_a_run_grow(schema, overrides, message):
    name = "grpo" if schema is GrpoConfig else "evaluate"
    with pytest.raises(UserError, match=message):
        load_config(schema, CONFIGS / "shapes" / f"{name}.yaml", overrides)


def test_arguments_of_a_reward_are_read_as_yaml():
    models = "[{type: python, function: m:f, arguments: {a: 0.5, b: [x, 1, true], c: {d: null}, e: '7'}, weight: 2}]"
    (model,) = load_config(GrpoConfig, GRPO, [f"reward.models={models}"]).reward.models
    assert model.arguments == {"a": 0.5, "b": ["x", 1, True], "c": {"d": None}, "e": "7"}
    assert model.weight == 2


def test_a_reference_that_there_is_not_is_not_refreshed():
    with pytest.raises(UserError, match="refresh_every: with algorithm.kl.beta 0 there is no reference"):
        load_config(GrpoConfig, GRPO, ["algorithm.kl.beta=0", "reference.refresh_every=50"])


@pytest.mark.parametrize(("overrides", "bounds"), [([], (0.2, 0.2)), (["algorithm.loss=gspo"], (3e-4, 4e-4))])
def test_an_image_has_narrower_bounds_than_a_token(overrides, bounds):
    for file in CONFIGS.glob("*/grpo*.yaml"):
        algorithm = load_config(GrpoConfig, file, overrides).algorithm
        assert (algorithm.clip_low, algorithm.clip_high) == bounds, file


def test_gdpo_is_normalised_once():
    with pytest.raises(UserError, match="set algorithm.advantage=mean"):
        load_config(GrpoConfig, GRPO, ["reward.aggregate=gdpo", "algorithm.advantage=std"])
    load_config(GrpoConfig, GRPO, ["reward.aggregate=gdpo", "algorithm.advantage=mean"])


@pytest.mark.parametrize(
    ("file", "override", "message"),
    [
        ("dpo", "data=null", "expected data, or all of rollout, reward, prompts; without data they lack rollout, rew"),
        ("dpo_online", "prompts=null", "without data they lack prompts"),
        ("dpo_online", "rollout.broadcast=ipc reward=null", "without data they lack reward"),
        ("dpo_online", "data={sources: [{shards: x}], batch_size: 4}", "are stored .* found data and rollout, reward"),
        ("dpo", "algorithm.margin=0.1", "algorithm.margin is for pairs that are drawn"),
        (
            "dpo",
            "data.batch_size=33 learner.actors.count=2",
            r"data.batch_size \(33\) must be a multiple of learner.act",
        ),
        ("dpo_online", "rollout.ahead=1", "rollout.ahead is for GRPO"),
        ("dpo", "learner.micro_batch=2", "learner.micro_batch is for GRPO"),
        ("dpo", "algorithm.label_smoothing=0.5", "algorithm.label_smoothing"),
        ("dpo", "algorithm={loss: ipo, label_smoothing: 0.1}", "label_smoothing is for the loss dpo, found ipo"),
        ("dpo_online", "rollout.engine.dtype=bfloat16", "must be learner.dtype"),
        ("dpo_online", "world=null reward.models=[{type: geneval}]", "a geneval reward needs `metadata`"),
    ],
)
def test_what_dpo_refuses(file, override, message):
    overrides = [override] if "{" in override and "world" not in override else override.split(" ", 1)
    with pytest.raises(UserError, match=message):
        load_config(DpoConfig, CONFIGS / "shapes" / f"{file}.yaml", overrides)
