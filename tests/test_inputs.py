"""Shards, policies and visual tokenizer belong together: compared before anything starts, by every command."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from simplear_rl import evaluate, grpo, pretrain, sft
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.generate import GenerateConfig
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig, SupervisedConfig
from simplear_rl.data.shards import TokenShards
from simplear_rl.errors import UserError
from simplear_rl.generate import generate
from simplear_rl.inputs import require, require_same_tokenizer
from simplear_rl.plan.dry_run import plan_grpo, plan_supervised
from simplear_rl.policy.conversion import convert
from simplear_rl.policy.model import random_policy, word_tokenizer
from simplear_rl.policy.vocabulary import read_image_tokenizer, read_layout
from simplear_rl.shapes import prepare
from simplear_rl.shapes.world import WORDS
from simplear_rl.tokenizers.cosmos import read_geometry, read_identity
from simplear_rl.tokenizers.fsq import FsqTokenizer, export


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two tokenizers of the same levels with other weights."""
    made = []
    for seed in 4, 5:
        torch.manual_seed(seed)
        model = FsqTokenizer()
        model(torch.rand(8, 3, 64, 64) * 2 - 1)
        made.append(tmp_path_factory.mktemp("tokenizers") / f"tokenizer-{seed}")
        made[-1].mkdir()
        export(model, made[-1])
    return made


def write_shards(folder, tokenizer, name="0"):
    """One shard with the codes of random images; it says which tokenizer they are of, if one is named."""
    folder.mkdir(exist_ok=True)
    codes = np.random.default_rng(0).integers(0, 900, (8, 64))
    table = pa.table({"caption": ["a circle"] * 8, "codes": list(codes)})
    about = {"simplear_rl": json.dumps({"tokenizer": read_identity(tokenizer)})} if tokenizer else None
    parquet.write_table(table.replace_schema_metadata(about), folder / f"{name}.parquet")
    return folder


@pytest.fixture
def root(tmp_path, tokenizers):
    """A root with a policy that remembers no tokenizer."""
    words = sorted({*WORDS, *prepare.PROMPT_PREFIX.split()})
    random_policy(
        tmp_path / "policy",
        word_tokenizer(words),
        codebook_size=read_geometry(tokenizers[0]).codebook_size,
        grid=(8, 8),
        prompt_prefix=prepare.PROMPT_PREFIX,
        geometry=prepare.POLICY_GEOMETRY,
        seed=0,
    )
    (tmp_path / "prompts.txt").write_text("a circle\n")
    return tmp_path


def remember(policy, tokenizer):
    """Let a policy remember a tokenizer, as those that are trained do."""
    values = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps(values | {"image_tokenizer": read_identity(tokenizer)}))


def settings(root, tokenizer, *overrides):
    return [f"root={root}", "world=null", f"tokenizer={tokenizer}", *overrides]


def supervised(root, tokenizer, folders, *overrides):
    sources = ", ".join(f"{{shards: {folder}}}" for folder in folders)
    stage = [f"start={root}/policy", f"data.sources=[{sources}]", "wandb=false", "steps=2"]
    values = settings(root, tokenizer, *stage, *overrides)
    return load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", values)


@pytest.mark.parametrize("command", [pretrain.train, sft.train, plan_supervised])
@pytest.mark.parametrize("one_folder", [True, False])
def test_shards_of_two_tokenizers_are_refused_with_both_identities(root, tokenizers, command, one_folder):
    folders = [
        write_shards(root / "a", tokenizers[0]),
        write_shards(root / ("a" if one_folder else "b"), tokenizers[1], name="1"),
    ]
    own, other = map(read_identity, tokenizers)
    assert own != other
    file = folders[1] / "1.parquet"
    with pytest.raises(UserError, match=f"tokenizer-4: .* is {own}, but (.|\n)*{file}: {other}\n.*={other}"):
        command(supervised(root, tokenizers[0], dict.fromkeys(folders)))
    assert not list(root.rglob("checkpoints"))


def test_policies_of_another_tokenizer_are_refused_by_every_command(root, tokenizers):
    shards = write_shards(root / "a", None)
    remember(root / "policy", tokenizers[1])
    values = settings(root, tokenizers[0])
    rewards = ["reward.models=[{type: geneval, metadata: null}]", "evaluation=null", "keep_best=null", "world=shapes"]
    trained = [*values, f"start={root}/policy", f"prompts={root}/prompts.txt", "wandb=false", *rewards]
    grpo_config = load_config(GrpoConfig, CONFIGS / "shapes" / "grpo.yaml", trained)
    drawn = [*values, f"policy={root}/policy", f"output={root}/out"]
    folders = {"policy": root / "policy", "tokenizer": tokenizers[0], "output": root / "pictures"}
    pictures = GenerateConfig(prompts="a circle", engine="transformers", **folders)
    for command, config in (
        (pretrain.train, supervised(root, tokenizers[0], [shards])),
        (sft.train, supervised(root, tokenizers[0], [shards])),
        (plan_supervised, supervised(root, tokenizers[0], [shards])),
        (grpo.train, grpo_config),
        (plan_grpo, grpo_config),
        (evaluate.evaluate, load_config(EvaluateConfig, CONFIGS / "shapes" / "evaluate.yaml", drawn)),
        (generate, pictures),
    ):
        with pytest.raises(UserError, match=f"policy: {read_identity(tokenizers[1])}"):
            command(config)


def test_what_says_nothing_and_what_is_accepted_by_name_pass(root, tokenizers):
    own, other = map(read_identity, tokenizers)
    layout = read_layout(root / "policy")
    silent, named = (TokenShards(write_shards(root / n, t), layout) for n, t in (("a", None), ("b", tokenizers[1])))
    assert require_same_tokenizer(tokenizers[0], [root / "policy"], [silent]) == own
    with pytest.raises(UserError, match="accept_tokenizer="):
        require_same_tokenizer(tokenizers[0], [root / "policy"], [silent, named])
    assert require_same_tokenizer(tokenizers[0], [root / "policy"], [silent, named], accept=other) == own
    remember(root / "policy", tokenizers[1])
    assert require_same_tokenizer(tokenizers[0], [root / "policy"], [named], accept=other) == own
    accepting = supervised(root, tokenizers[0], [root / "a", root / "b"], f"accept_tokenizer={other}")
    plan_supervised(accepting)
    remember(root / "policy", tokenizers[1])
    folders = {"policy": root / "policy", "tokenizer": tokenizers[0], "output": root / "pictures"}
    generate(GenerateConfig(prompts="a circle", engine="transformers", accept_tokenizer=other, **folders))
    assert (root / "pictures" / "00000-00.png").exists()
    with pytest.raises(UserError, match="accept_tokenizer: .*pattern"):
        supervised(root, tokenizers[0], [root / "a"], f"accept_tokenizer={other[:20]}")


def test_a_policy_for_another_resolution_still_remembers(root, tokenizers):
    remember(root / "policy", tokenizers[1])
    convert(root / "policy", root / "small", geometry=read_geometry(tokenizers[1]), resolution=32)
    assert read_image_tokenizer(root / "small") == read_identity(tokenizers[1])


@pytest.mark.parametrize("metadata", ["", "[]", "{", '"tokenizer"'])
def test_metadata_of_another_origin_are_named(root, metadata):
    table = pa.table({"caption": ["a circle"], "codes": [[0] * 64]})
    parquet.write_table(table.replace_schema_metadata({"simplear_rl": metadata}), root / "0.parquet")
    with pytest.raises(UserError, match="0.parquet: its metadata `simplear_rl`"):
        TokenShards(root, read_layout(root / "policy"))


def test_shards_of_the_miniature_world_name_its_tokenizer(world):
    layout = read_layout(world / "policy")
    (identity,) = TokenShards(world / "data" / "pretrain", layout).tokenizers
    assert identity == read_identity(world / "tokenizer")


def test_a_policy_that_a_finished_run_owes_is_explained(root):
    (root / "one" / "checkpoints" / "step-000002").mkdir(parents=True)
    config = supervised(root, root / "tokenizer", [root / "a"])
    with pytest.raises(UserError, match="final: not found, .*; the command of the run .*one sets it"):
        require(config, root / "one" / "final")
