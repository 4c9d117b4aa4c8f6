"""What users get wrong, command by command: one message that says where and what, at once, and nothing is touched."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from pyarrow import parquet
from safetensors.torch import save_file

from actors import connection
from actors.placement import check_fits
from simplear_rl import create_policy, evaluate, generate, grpo, pretrain, sft
from simplear_rl.benchmarks.dpg_questions import COLUMNS
from simplear_rl.cli import exit_on_user_error, read_command_line
from simplear_rl.config.base import ActorsConfig
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.generate import GenerateConfig
from simplear_rl.config.stages import GrpoConfig, SupervisedConfig
from simplear_rl.errors import UserError
from simplear_rl.run.checkpoints import begin_checkpoint
from simplear_rl.tokenizers.cosmos import CosmosTokenizer
from simplear_rl.tokenizers.fsq import FsqTokenizer, export

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def template(tmp_path_factory, policy):
    """Everything that the commands read, small and untrained."""
    root = tmp_path_factory.mktemp("template")
    shutil.copytree(policy, root / "policy")
    for folder in "tokenizer", "clip", "data":
        (root / folder).mkdir()
    export(FsqTokenizer((5, 5, 4), channels=8), root / "tokenizer")
    (root / "clip" / "open_clip_config.json").write_text("{}")
    save_file({"visual.proj": torch.zeros(2)}, root / "clip" / "open_clip_model.safetensors")
    rows(root)
    (root / "prompts.txt").write_text("a red circle\ntwo cross\n")
    (root / "taken").write_text("a file")
    table = ",".join(COLUMNS) + "\na1,a red circle,,1,0,entity,whole,entity - whole (circle),Is there a circle?\n"
    (root / "dpg.csv").write_text(table)
    return root


def rows(root, **columns):
    good = {"caption": ["a red circle"] * 4, "codes": [[7] * 16] * 4}
    parquet.write_table(pa.table(good | columns), root / "data" / "0.parquet")


def edit(file, **values):
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def layout(root, **values):
    config = root / "policy" / "config.json"
    edit(config, image_layout=json.loads(config.read_text())["image_layout"] | values)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def arguments(command, root):
    """A command line that would work."""
    stage = [f"root={root}", "world=null", f"tokenizer={root}/tokenizer"]
    training = [*stage, f"start={root}/policy", f"run={root}/run", "steps=4", "wandb=false"]
    shards = [f"data.sources=[{{shards: {root}/data}}]", "data.batch_size=4", "data.micro_batch=4"]
    paths = ["--tokenizer", f"{root}/tokenizer", "--output", f"{root}/new"]
    return {
        "pretrain": [*training, *shards],
        "sft": [*training, *shards],
        "grpo": [*training, f"prompts={root}/prompts.txt", "rollout.prompts_per_step=2"],
        "evaluate": [*stage, f"policy={root}/policy", f"output={root}/out"],
        "generate": ["--model", f"{root}/policy", "--engine", "transformers", "--prompts", "a cross", *paths],
        "create_policy": ["--source", f"{root}/policy", "--resolution", "32", *paths],
    }[command]


def call(command, line, monkeypatch):
    """Run a command in this process, as its `__main__` does."""
    monkeypatch.setattr(sys, "argv", [command, *line])
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("a Ray cluster was started"))
    commands = {
        "pretrain": (SupervisedConfig, pretrain.train, {}),
        "sft": (SupervisedConfig, sft.train, {}),
        "grpo": (GrpoConfig, grpo.train, {}),
        "evaluate": (EvaluateConfig, evaluate.report, evaluate.OPTIONS),
        "generate": (GenerateConfig, generate.generate, generate.OPTIONS),
    }
    if command == "create_policy":
        options = create_policy.parser().parse_args()
        exit_on_user_error(command, lambda: create_policy.create_policy(options))
    else:
        schema, function, shorthands = commands[command]
        read_command_line(schema, command, options=shorthands).run(function)


def tree(root):
    """Every path below `root`, with the checksum of what is in it."""
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""  # noqa: E731
    return {str(path.relative_to(root)): digest(path) for path in sorted(root.rglob("*"))}


def dpg(prefix=""):
    """DPG-Bench's files as overrides."""
    files = "prompts={root}/dpg.csv", "questions={root}/dpg.csv"
    return [f"{prefix}{value}" for value in ("benchmark=dpg", "images_per_prompt=4", *files)]


# What is broken in the folder, or None; what is added to the command line; what the message says.
CASES = [
    # Command lines and configurations.
    ("pretrain", None, ["stps=3"], r"stps: unknown key; did you mean steps\?"),
    ("pretrain", None, ["steps"], "an override is written key=value"),
    ("pretrain", None, ["steps=-1"], "steps: .* greater than or equal to 1, found -1"),
    ("pretrain", None, ["data.drop_caption=1.5"], "data.drop_caption: .* less than or equal to 1, found 1.5"),
    ("pretrain", None, ["learner.optimizer.learning_rate=inf"], "learning_rate: .* finite number, found inf"),
    ("pretrain", None, ["learner.optimizer.learning_rate=nan"], "learning_rate: .*, found nan"),
    ("pretrain", None, ["learner.dtype=float16"], "learner.dtype: .* 'float32' or 'bfloat16', found 'float16'"),
    ("pretrain", None, ["data.batch_size=3"], r"data.batch_size \(3\) must be a multiple of data.micro_batch"),
    ("pretrain", None, ["learner.actors.count=0"], "learner.actors.count: .* greater than or equal to 1, found 0"),
    ("pretrain", None, ["learner.actors.cpus=-1"], "learner.actors.cpus: .* greater than 0, found -1"),
    ("pretrain", None, ["--config", "nowhere.yaml"], "nowhere.yaml: not a readable YAML file: .*No such file"),
    ("pretrain", None, ["--config", "{root}/data"], "data: not a readable YAML file: .*Is a directory"),
    ("pretrain", None, ["run=~nobody-of-that-name/x"], "run: .*~nobody-of-that-name/x: .*home"),
    ("pretrain", None, ["run=a\0b"], r"run: control characters in the path 'a\\x00b'"),
    ("pretrain", None, ["seed=2001-99-99"], "seed: Input should be a valid integer, .* found '2001-99-99'"),
    ("pretrain", None, ["keep_best={metric: loss, prefer: best}"], "keep_best.prefer: .*, found 'best'"),
    ("pretrain", None, ["--confg", "x"], "unrecognized arguments: --confg"),
    ("grpo", None, ["guards.kl_waring=1"], "guards.kl_waring: unknown key; did you mean guards.kl_warning"),
    ("grpo", None, ["learner.actors.count=3"], "must be a multiple of learner.actors.count .3."),
    (
        "grpo",
        None,
        ["learner.micro_batch=3"],
        r"learner.micro_batch \(3\) must divide .*samples_per_prompt \(8\)",
    ),
    ("sft", None, ["learner.micro_batch=1"], "learner.micro_batch is for GRPO: set data.micro_batch"),
    ("grpo", None, ["algorithm.minibatches=3"], r"algorithm.minibatches \(3\) must divide the 2 prompts"),
    ("grpo", None, ["reward.models.0.weight=x"], "reward.models.0.weight=x.: reward.models is not a section"),
    (
        "evaluate",
        None,
        ["benchmark=imagenet"],
        "benchmark: Input should be 'shapes', 'geneval', 'geneval2' or 'dpg', found",
    ),
    ("evaluate", None, ["temperature=-1"], "temperature: .* greater than or equal to 0, found -1"),
    # Prompts.
    ("grpo", None, ["prompts={root}/none.txt"], "none.txt: not found"),
    ("grpo", None, ["prompts={root}/data"], "data: cannot be read: Is a directory"),
    ("grpo", lambda r: (r / "prompts.txt").write_text(""), [], "prompts.txt: no prompts in it"),
    ("grpo", lambda r: (r / "prompts.txt").write_text("a\n\nb\n"), [], "prompts.txt, line 2: empty prompt"),
    ("grpo", lambda r: (r / "prompts.txt").write_bytes(b"a\n\xff\n"), [], "prompts.txt, line 2: not UTF-8"),
    ("grpo", lambda r: (r / "prompts.txt").write_text("a\x07\n"), [], "prompts.txt, line 1: control characters"),
    ("grpo", lambda r: (r / "prompts.txt").write_text("a " * 99), [], "line 1: .* has .* tokens, there is room for 32"),
    ("generate", None, ["--prompts", "  "], "prompts: empty prompt"),
    ("generate", None, ["--prompts", "{root}/none.txt"], "none.txt: file not found; expected a file with a prompt"),
    # Shards.
    ("pretrain", lambda r: cut(r / "data/0.parquet"), [], "0.parquet: not a readable shard"),
    ("pretrain", lambda r: (r / "data/0.parquet").write_bytes(b""), [], "0.parquet: not a readable shard"),
    ("pretrain", lambda r: (r / "data/0.parquet").unlink(), [], "data: no Parquet shards there"),
    ("pretrain", None, ["data.sources=[{shards: {root}/none}]"], "none: not found"),
    ("pretrain", lambda r: rows(r, codes=[[7] * 15] * 4), [], "0.parquet: row 0: 15 codes, the policy expects 16"),
    ("sft", lambda r: rows(r, codes=[[100] * 16] * 4), [], "row 0: code 100, the policy expects 0 ... 99"),
    ("pretrain", lambda r: rows(r, caption=["a", None, "b", "c"]), [], "0.parquet: row 1: empty caption"),
    ("pretrain", lambda r: rows(r, caption=[1, 2, 3, 4]), [], "column `caption` must be a string, found int64"),
    ("sft", lambda r: rows(r, short_caption=["", "a", "a", "a"]), [], "row 0: empty short_caption"),
    # Policies.
    ("pretrain", None, ["start={root}/none"], "none: not found"),
    ("pretrain", lambda r: (r / "policy/config.json").write_text("{"), [], "config.json: not a readable model config"),
    ("pretrain", lambda r: (r / "policy/config.json").write_text("[]"), [], "config.json: not a readable model config"),
    ("grpo", lambda r: edit(r / "policy/config.json", image_layout=None), [], "config.json: no `image_layout`"),
    ("grpo", lambda r: layout(r, rows="4"), [], "config.json: `image_layout` .* expected positive integers"),
    ("evaluate", lambda r: layout(r, more=1), [], "config.json: `image_layout` .* 'more'"),
    ("evaluate", lambda r: layout(r, visual_offset=10**6), [], "visual ids end at 1000100 .* but the model has"),
    ("evaluate", lambda r: layout(r, codebook_size=2**17), [], "has 131072 codes, expected 65536 at most"),
    ("evaluate", lambda r: edit(r / "policy/config.json", hidden_size="x"), [], "config.json: not a readable model"),
    ("pretrain", lambda r: cut(r / "policy/model.safetensors"), [], "model.safetensors: not a readable safetensors"),
    ("evaluate", lambda r: cut(r / "policy/model.safetensors"), [], "model.safetensors: not a readable safetensors"),
    ("generate", lambda r: cut(r / "policy/model.safetensors"), [], "model.safetensors: not a readable safetensors"),
    ("grpo", lambda r: (r / "policy/model.safetensors").unlink(), [], "policy: no weights there"),
    (
        "grpo",
        lambda r: (r / "policy/tokenizer.json").unlink(),
        [],
        "no text tokenizer there .tokenizer.json is missing",
    ),
    ("pretrain", lambda r: cut(r / "policy/tokenizer.json"), [], "tokenizer.json: not a readable tokenizer"),
    ("pretrain", lambda r: layout(r, visual_offset=20), [], "has .* ids, but the model's visual ids start at 20"),
    ("create_policy", lambda r: (r / "new").mkdir(), [], "new: exists already; a policy is written to a new folder"),
    ("create_policy", None, ["--resolution", "33"], "resolution 33: expected a multiple of 8"),
    ("create_policy", None, ["--resolution", "many"], "argument --resolution: invalid int value: 'many'"),
    ("create_policy", None, ["--resolution", "4096"], "an image has 262144 codes, but the model has 256 positions"),
    ("create_policy", lambda r: cut(r / "policy/model.safetensors"), [], "not a readable safetensors file"),
    (
        "create_policy",
        None,
        ["--output", "{root}/taken/new"],
        "taken is a file, not a folder; choose another `--output",
    ),
    ("create_policy", None, ["--output", "x" * 300], "x: cannot be looked at: File name too long"),
    ("create_policy", None, ["--tokenizer", "x" * 300], "x/encoder.jit: not found"),
    ("create_policy", None, ["--source", "x" * 300], "x/config.json: not a readable model configuration"),
    # Visual tokenizers.
    ("grpo", lambda r: (r / "tokenizer/decoder.jit").unlink(), [], "decoder.jit: not found; a visual tokenizer is"),
    ("grpo", lambda r: cut(r / "tokenizer/decoder.jit"), [], "decoder.jit: not a readable TorchScript file"),
    ("generate", lambda r: cut(r / "tokenizer/encoder.jit"), [], "encoder.jit: not a readable TorchScript file"),
    ("evaluate", lambda r: edit(r / "tokenizer/config.json", levels=[8, 8]), [], "has 64 codes, .* built for 100"),
    ("evaluate", lambda r: edit(r / "tokenizer/config.json", patch=None), [], "expected the keys levels and patch"),
    ("evaluate", lambda r: edit(r / "tokenizer/config.json", levels="ab"), [], "must be positive integers"),
    ("evaluate", lambda r: edit(r / "tokenizer/config.json", levels=7), [], "expected the keys levels and patch"),
    # Reward models.
    ("grpo", lambda r: shutil.rmtree(r / "clip"), [], "clip: not found"),
    ("grpo", lambda r: (r / "clip/open_clip_config.json").write_text("{"), [], "open_clip_config.json: expected"),
    ("grpo", lambda r: cut(r / "clip/open_clip_model.safetensors"), [], "open_clip_model.safetensors: not a readable"),
    ("grpo", None, ["reward.models=[{type: hpsv2, model: x, weights: {root}/none.pt}]"], "none.pt: not found"),
    ("grpo", None, ["reward.models=[{type: blip, model: x}]"], "reward.models.0.type: .* found 'blip'"),
    (
        "grpo",
        None,
        ["reward.models=[{type: clip, model: ViT-B-23, weights: openai}]"],
        "clip reward ViT-B-23: open_clip knows no such model",
    ),
    (
        "grpo",
        None,
        ["reward.models=[{type: clip, model: ViT-B/32, weights: opneai}]"],
        "ViT-B/32: weights 'opneai' are neither a file nor known to open_clip; it knows openai,",
    ),
    ("grpo", None, ["reward.models=[{type: clip, model: 'hf-hub:no/one'}]"], "no/one: open_clip_config.json is not in"),
    (
        "grpo",
        None,
        ["reward.models=[{type: hpsv2, model: ViT-H-41, weights: v2.1}, {type: clip, model: 'hf-hub:no/one'}]"],
        "hpsv2 reward ViT-H-41: open_clip knows no such model.*\nno/one: open_clip_config.json",
    ),
    (
        "grpo",
        None,
        ["reward.models=[{type: hpsv2, model: ViT-H-14, weights: v2.1}]"],
        "xswu/HPSv2: HPS_v2.1_compressed.pt is not in the Hugging Face cache, and the Hub does not give it: ",
    ),
    (
        "grpo",
        lambda r: (r / "entries.jsonl").write_text('{"prompt": "a cross", "tag": "x", "include": []}\n'),
        ["reward.models=[{type: geneval, metadata: {root}/entries.jsonl, detector: {model: no/one}}]"],
        "no/one: config.json is not in the .*\ntimm/vit_large_patch14_clip_224.openai: ",
    ),
    ("grpo", None, [f"reward.models=[{{type: clip, model: 'local-dir:{'x' * 300}'}}]"], "x: cannot be looked at: File"),
    (
        "grpo",
        None,
        ["reward.models=[{type: clip, model: ViT-B-32, weights: ~nobody-of-that-name/x}]"],
        "weights '~nobody-of-that-name/x' are neither a file nor known",
    ),
    # What judges images.
    (
        "grpo",
        None,
        [*dpg("evaluation."), "evaluation.every=1"],
        "^simplear_rl.grpo: Qwen/Qwen2.5-VL-7B-Instruct: config",
    ),
    (
        "grpo",
        None,
        [*dpg("evaluation."), "evaluation.every=1", "evaluation.judge.type=mplug", "prompts={root}/none.txt"],
        "none.txt: not found.*\njudge damo/mplug.*needs ModelScope",
    ),
    ("grpo", None, [*dpg("evaluation."), "evaluation.every=1", "evaluation.judge.model={root}/no"], "/no: not found"),
    (
        "evaluate",
        None,
        ["--benchmark", "dpg", *dpg()],
        "^simplear_rl.evaluate: Qwen/Qwen2.5-VL-7B-Instruct: config.json",
    ),
    ("evaluate", None, ["--benchmark", "dpg", *dpg(), "judge.type=mplug"], "judge damo/mplug.* needs ModelScope .*pip"),
    (
        "evaluate",
        None,
        ["--benchmark", "dpg", *dpg(), "judge.model={root}/data"],
        "judge .*/data: no config.json there",
    ),
    (
        "evaluate",
        lambda r: cut(r / "policy/model.safetensors"),
        ["--benchmark", "dpg", *dpg(), "judge.model={root}/policy"],
        "policy/model.safetensors: not a readable",
    ),
    (
        "evaluate",
        None,
        ["--benchmark", "dpg", *dpg(), "judge.model={root}/none", "policy={root}/no", "tokenizer={root}/not"],
        "not: not found.*\n.*/no: not found.*\n.*/none: not found",
    ),
    (
        "evaluate",
        None,
        ["--benchmark", "geneval", "prompts={root}/x.jsonl", "detector.model={root}/none", "output={root}/taken/x"],
        "none: not found.*\n.*taken is a file.*\n.*x.jsonl: not found; it is published at .*\ntimm/vit_large",
    ),
    (
        "evaluate",
        None,
        ["--benchmark", "geneval", "prompts={root}/x.jsonl", "detector.clip=ViT-L", "score_only={root}/data"],
        "x.jsonl: not found; .*\nfacebook/mask2former-swin-small-coco-instance: .*\ndetector.clip ViT-L: open_clip",
    ),
    (
        "generate",
        None,
        ["--model", "{root}/none", "--tokenizer", "{root}/no"],
        "/no/encoder.jit: not.*\n.*/none: no policy",
    ),
    # What is asked of the drawing.
    ("generate", None, ["--temperature", "nan"], "temperature: .* found nan"),
    ("generate", None, ["--guidance-scale", "inf"], "guidance_scale: .* finite number, found inf"),
    ("generate", None, ["--kv-cache-gib", "0"], "kv_cache_gib: .* greater than 0, found 0.0"),
    ("generate", None, ["--engine", "tensorflow"], "engine: .* 'vllm', 'transformers' or 'sjd', found 'tensorflow'"),
    # Folders to write to.
    ("pretrain", None, ["run={root}/taken"], "taken is a file, not a folder; choose another `run`"),
    ("grpo", None, ["run=/proc/run"], "/proc/run: /proc cannot be written to; choose another `run`"),
    ("evaluate", None, ["output={root}/taken/x"], "taken is a file, not a folder; choose another `output`"),
    ("generate", None, ["--output", "/proc/pictures"], "/proc cannot be written to; choose another `output`"),
]


@pytest.mark.parametrize(
    ("command", "broken", "line", "message"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
def test_bad_input_is_named_at_once_and_touches_nothing(
    template, tmp_path, monkeypatch, capsys, command, broken, line, message
):
    root = tmp_path / "root"
    shutil.copytree(template, root)
    if broken:
        broken(root)
    if command == "grpo" and not any(part.startswith("reward.models") for part in line):
        line = [f"reward.models=[{{type: clip, model: 'local-dir:{root}/clip'}}]", *line]
    monkeypatch.setattr(os, "access", _access_without_rights(os.access))
    before = tree(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        call(command, [*arguments(command, root), *(part.replace("{root}", str(root)) for part in line)], monkeypatch)
    said = capsys.readouterr().err + (stopped.value.code if isinstance(stopped.value.code, str) else "")
    assert stopped.value.code not in (0, None)
    assert re.search(message, said, re.DOTALL), said
    assert "Traceback" not in said
    assert tree(tmp_path) == before


def _access_without_rights(access):
    """As for a user that may not write to /proc: root may, and finds out later."""
    return lambda path, mode: str(path) != "/proc" and access(path, mode)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 1}\nnonsense\n', "metrics.jsonl, line 2: expected the metrics of a step"),
        ("metrics.jsonl", '{"loss": 1}\n', "metrics.jsonl, line 1: expected the metrics of a step"),
        ("config.yaml", "a: [", "config.yaml: not a readable YAML file"),
        ("config.yaml", "- a", "config.yaml: expected keys and values, found list"),
    ],
)
def test_a_run_folder_with_a_damaged_file_is_left_as_it_is(template, tmp_path, monkeypatch, name, content, message):
    root = tmp_path / "root"
    shutil.copytree(template, root)
    (root / "run").mkdir()
    begin_checkpoint(root / "run/checkpoints/step-000002", lambda folder: lambda: (folder / "state").write_text("x"))()
    (root / "run" / name).write_text(content)
    before = tree(root)
    with pytest.raises(SystemExit, match=message):
        call("pretrain", arguments("pretrain", root), monkeypatch)
    assert tree(root) == before


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "no Ray cluster answers there .*Connection refused"),
        ("ray://127.0.0.1:9", "a run cannot go through Ray Client"),
        ("nonsense", "no Ray cluster .* expected host:port of a running one"),
        ("127.0.0.1:99999", "no Ray cluster answers there"),
    ],
)
def test_a_ray_address_that_does_not_answer_is_named(template, tmp_path, monkeypatch, address, message):
    root = tmp_path / "root"
    shutil.copytree(template, root)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    before = tree(root)
    with pytest.raises(SystemExit, match=f"RAY_ADDRESS={address}: {message}"):
        call("pretrain", arguments("pretrain", root), monkeypatch)
    assert tree(root) == before


@pytest.mark.parametrize("given", ["RAY_ADDRESS", "auto", ""])
def test_a_ray_cluster_that_hangs_is_named(template, tmp_path, monkeypatch, given):
    """A stopped process has its connections accepted by the kernel, and says nothing."""
    root = tmp_path / "root"
    shutil.copytree(template, root)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection, "ANSWER", 0.5)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where Ray keeps the address of this machine's cluster
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        monkeypatch.setenv("RAY_ADDRESS", address if given == "RAY_ADDRESS" else given)
        with pytest.raises(SystemExit, match=f"{address}: no Ray cluster answers there .timed out.*RAY_ADDRESS=local"):
            call("pretrain", arguments("pretrain", root), monkeypatch)


@pytest.mark.parametrize(
    ("actors", "message"),
    [
        (ActorsConfig(gpus=1), "ask for 1 GPUs .learner.actors 1 x 1., the cluster has 0"),
        (ActorsConfig(count=9), "ask for 9 CPUs .learner.actors 9 x 1., the cluster has 8"),
        (ActorsConfig(count=9, gpus=1), r"ask for 9 CPUs .*\n.* ask for 9 GPUs .learner.actors 9 x 1.,"),
        (ActorsConfig(cpus=0.5, gpus=0.5, count=2), "ask for 1 GPUs"),
    ],
)
def test_more_devices_than_there_are_is_said_with_the_keys_to_change(actors, message):
    with pytest.raises(UserError, match=f"{message}.*: lower learner.actors.count and learner.actors."):
        check_fits({"learner.actors": actors}, {"CPU": 8.0})


def test_fractions_that_add_up_to_all_there_is_fit():
    roles = {str(share): ActorsConfig(cpus=0.1, gpus=share) for share in (0.4, 0.2, 0.3, 0.1)}
    assert sum(config.gpus for config in roles.values()) > 1  # by rounding
    check_fits(roles, {"CPU": 1.0, "GPU": 1.0})


@pytest.mark.parametrize("proxy", ["nonsense://proxy", "http://127.0.0.1:9"])
def test_a_broken_proxy_ends_a_download_with_the_name_of_what_was_wanted(tmp_path, proxy):
    line = ["--source", "nobody/nothing", "--resolution", "512", "--output", str(tmp_path / "new")]
    env = os.environ | {"HTTPS_PROXY": proxy, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "simplear_rl.create_policy", *line]
    failed = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY, timeout=200)
    assert failed.returncode == 1
    assert "nobody/nothing: no folder of that name, and the Hugging Face Hub does not give it" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 32, 32, 4), np.uint8), r"expected images uint8 \[B, H, W, 3\], found uint8 \[1, 32, 32, 4\]"),
        (np.zeros((1, 32, 32, 3), np.float32), "found float32"),
        (np.zeros((0, 32, 32, 3), np.uint8), r"found uint8 \[0, 32, 32, 3\]"),
        (np.zeros((1, 32, 30, 3), np.uint8), "images of 30 x 32 pixels: sides must be multiples of 8"),
    ],
)
def test_images_of_another_kind_are_refused(template, images, message):
    with pytest.raises(UserError, match=message):
        CosmosTokenizer(template / "tokenizer").encode(images)
