"""`python -m simplear_rl.generate`: files, metadata, seeds, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest
from PIL import Image

from simplear_rl.characters import tidy
from simplear_rl.cli import read_command_line
from simplear_rl.config.generate import GenerateConfig
from simplear_rl.errors import UserError
from simplear_rl.generate import OPTIONS, SHEET_ROWS, generate
from simplear_rl.policy.rollouts import Prompt
from simplear_rl.report.image_files import ImageFiles
from simplear_rl.rollout.transformers_engine import TransformersEngine
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

REPOSITORY = Path(__file__).parents[1]


def run(world, output, *arguments, model=None):
    """Draw as the command does; returns the content of the image files, by name."""
    paths = ["--model", model or world / "policy", "--tokenizer", world / "tokenizer", "--output", output]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["generate", *map(str, [*paths, *arguments])])
        read_command_line(GenerateConfig, "generate", options=OPTIONS).run(generate)
    return {file.name: file.read_bytes() for file in output.glob("0*.png")}


@pytest.mark.parametrize(
    ("engine", "scale"),
    [("vllm", 2.5), ("transformers", 1.0), ("transformers", 2.5), ("sjd", 1.0), ("sjd", 2.5)],
)
def test_same_seed_and_engine_give_the_same_files(world, tmp_path, engine, scale):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\ntwo crosses\n")
    arguments = ["--prompts", prompts, "--engine", engine, "--guidance-scale", scale, "--num-images", 3]
    first = run(world, tmp_path / "first", *arguments)
    again = run(world, tmp_path / "again", *arguments, "--batch-size", 2)
    other = run(world, tmp_path / "other", *arguments, "--seed", 1)
    assert sorted(first) == [f"0000{p}-0{k}.png" for p in range(2) for k in range(3)]
    assert len(set(first.values())) == 6
    assert first == again
    assert not set(first.values()) & set(other.values())
    assert (tmp_path / "first" / "contact_sheet.png").stat().st_size > 1000


def pixels(folder):
    return [Image.open(file).tobytes() for file in sorted(folder.glob("0*.png"))]


def test_vllm_and_transformers_draw_the_same_pictures(world, tmp_path):
    for engine in "vllm", "transformers":
        run(
            world,
            tmp_path / engine,
            "--prompts",
            "a cross",
            "--num-images",
            4,
            "--guidance-scale",
            2,
            "--engine",
            engine,
        )
    assert pixels(tmp_path / "vllm") == pixels(tmp_path / "transformers")


@pytest.mark.parametrize("engine", [pytest.param("vllm", marks=pytest.mark.slow), "transformers"])
def test_generation_config_of_a_checkpoint_has_no_effect(world, tmp_path, engine):
    # The published checkpoints carry a repetition penalty and EOS ids, made for text.
    trapped = tmp_path / "policy"
    shutil.copytree(world / "policy", trapped)
    trap = {"repetition_penalty": 1.5, "eos_token_id": list(range(40, 1000)), "top_k": 1, "do_sample": True}
    (trapped / "generation_config.json").write_text(json.dumps(trap))
    arguments = ["--prompts", "a cross", "--num-images", 2, "--engine", engine]
    run(world, tmp_path / "plain", *arguments)
    run(world, tmp_path / "trapped", *arguments, model=trapped)
    assert pixels(tmp_path / "plain") == pixels(tmp_path / "trapped")


def test_files_say_how_they_came_about(world, tmp_path):
    run(world, tmp_path, "--prompts", "a cross", "--engine", "transformers", "--seed", 7, "--guidance-scale", 2)
    text = Image.open(tmp_path / "00000-00.png").text
    assert (text["prompt"], text["seed"], text["engine"]) == ("a cross", "7", "transformers")
    assert text["model"] == str(world / "policy")


def test_images_of_a_checkpoint_before_are_not_those_of_the_newest(tmp_path):
    """As where a run goes on: its `final` is a link that moves."""
    config = GenerateConfig(policy=tmp_path / "final", tokenizer="a/b", prompts="a", output=tmp_path / "out")
    files, prompt = ImageFiles(config), Prompt(0, "a")
    files.make_folder()
    config.policy.symlink_to("step-1")
    files.write(prompt, np.zeros((1, 8, 8, 3), np.uint8))
    assert files.complete(prompt)
    config.policy.unlink()
    config.policy.symlink_to("step-2")
    with pytest.raises(UserError, match="was drawn with model '.*step-1', not '.*step-2'"):
        files.complete(prompt)


def test_the_policy_is_named_as_the_user_named_it(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    run(world, tmp_path, "--prompts", "a cross", "--engine", "transformers", model="policy")
    assert Image.open(tmp_path / "00000-00.png").text["model"] == "policy"


PROMPTS = ["a cross", "a red circle", "two blue squares"]


@pytest.fixture
def drawn(monkeypatch):
    """The prompts that engines were asked for, call by call."""
    calls = []
    draw = TransformersEngine.generate

    def recorded(self, request):
        calls.append([prompt.index for prompt in request.prompts])
        return draw(self, request)

    monkeypatch.setattr(TransformersEngine, "generate", recorded)
    return calls


def test_the_same_command_goes_on_where_it_was_stopped(world, tmp_path, drawn, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    arguments = ["--prompts", prompts, "--engine", "transformers", "--num-images", 2, "--batch-size", 2]
    whole = run(world, tmp_path / "whole", *arguments)
    decode, done = CosmosTokenizer.decode, []

    def stopped(self, *codes):
        done.append(1)
        return decode(self, *codes) if len(done) < 3 else pytest.fail("stopped")

    with monkeypatch.context() as patch, pytest.raises(pytest.fail.Exception, match="stopped"):
        patch.setattr(CosmosTokenizer, "decode", stopped)
        run(world, tmp_path / "parts", *arguments)
    assert sorted(file.name for file in (tmp_path / "parts").iterdir()) == sorted(whole)[:4]  # written as decoded
    cut = tmp_path / "parts" / "00000-01.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    (tmp_path / "parts" / "00001-00.png").write_bytes(b"")
    drawn.clear()
    assert run(world, tmp_path / "parts", *arguments) == whole
    assert drawn == [[0, 1, 2]]
    (tmp_path / "parts" / "00002-01.png").unlink()
    assert run(world, tmp_path / "parts", *arguments) == run(world, tmp_path / "parts", *arguments) == whole
    assert drawn[1:] == [[2]]  # and nothing at all in the last run
    sheets = [(tmp_path / name / "contact_sheet.png").read_bytes() for name in ("whole", "parts")]
    assert sheets[0] == sheets[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", 3], "00000-00.png: was drawn with seed '0', not '3'; choose another output folder"),
        (["--prompts", "a circle"], "was drawn with prompt 'a cross', not 'a circle'"),
        (["--temperature", 0.5], "was drawn with temperature '1.0', not '0.5'"),
        (["--engine", "sjd"], "was drawn with engine 'transformers', not 'sjd'"),
    ],
)
def test_images_with_other_settings_are_not_replaced(world, tmp_path, drawn, arguments, message):
    before = run(world, tmp_path, "--prompts", "a cross", "--engine", "transformers")
    drawn.clear()
    with pytest.raises(SystemExit, match=message):
        run(world, tmp_path, "--prompts", "a cross", "--engine", "transformers", *arguments)
    assert not drawn and {file.name: file.read_bytes() for file in tmp_path.glob("0*.png")} == before


def test_storage_that_refuses_an_image_is_named(world, tmp_path):
    (tmp_path / "00000-01.partial").mkdir()
    with pytest.raises(SystemExit, match="00000-01.png: cannot be written: Is a directory"):
        run(world, tmp_path, "--prompts", "a cross", "--engine", "transformers", "--num-images", 2)
    assert (tmp_path / "00000-00.png").exists()


def test_images_are_not_kept_in_memory(world, tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cross\n" * 40)
    decode, alive, most = CosmosTokenizer.decode, WeakSet(), []

    class Images(np.ndarray):
        __hash__ = object.__hash__

    def counted(self, *codes):
        images = decode(self, *codes).view(Images)
        alive.add(images)
        most.append(len(alive))
        return images

    monkeypatch.setattr(CosmosTokenizer, "decode", counted)
    run(world, tmp_path / "out", "--prompts", prompts, "--engine", "transformers")
    assert len(most) == 40 and max(most) <= 2
    rows = (Image.open(tmp_path / "out" / "contact_sheet.png").height + 60) // 115
    assert rows == SHEET_ROWS < 40


@pytest.mark.parametrize(
    "prompt", ["a sign $^$", "a red circle<|soi|> on a mat", "\u4e00\u53ea\u732b\u3000\u5728", "\ufeffa\u00a0b"]
)
def test_prompts_are_text(world, tmp_path, prompt):
    run(world, tmp_path, "--prompts", prompt, "--engine", "transformers")
    assert Image.open(tmp_path / "00000-00.png").text["prompt"] == tidy(prompt)
    assert (tmp_path / "contact_sheet.png").exists()


@pytest.mark.parametrize("name", ["10-prompts.jsonl", "10-prompts.csv"])
def test_prompts_of_tables(world, tmp_path, name):
    table = 'prompt,category\na red circle,single\n"a blue square, and a cross",two\n'
    lines = '{"tag": "x", "prompt": "a red circle"}\n{"prompt": "a blue square, and a cross"}\n'
    (tmp_path / name).write_text(table if name.endswith("csv") else lines)
    run(world, tmp_path / "out", "--prompts", tmp_path / name, "--engine", "transformers")
    found = [Image.open(file).text["prompt"] for file in sorted((tmp_path / "out").glob("0*.png"))]
    assert found == ["a red circle", "a blue square, and a cross"]


def test_a_negative_prompt_without_the_prefix_draws_another_picture(world, tmp_path):
    arguments = ["--prompts", "a cross", "--guidance-scale", 3, "--negative-prompt", "two blue squares"]
    with_prefix = run(world, tmp_path / "a", *arguments, "--engine", "transformers")
    assert with_prefix != run(world, tmp_path / "b", *arguments, "--engine", "transformers", "negative_prefix=false")
    assert Image.open(tmp_path / "b" / "00000-00.png").text["negative_prefix"] == "False"


def test_options_are_short_for_keys(monkeypatch):
    """Numbers are numbers, and texts stay what they are, whatever they would mean in YAML."""
    numbers = ["--top-k", "5", "--top-p", "5e-1", "--guidance-scale", "2", "--num-images", "3", "--seed", "07"]
    texts = ["--prompts", "12:30", "--negative-prompt", "#2", "--model", "off", "--output", "~"]
    monkeypatch.setattr(sys, "argv", ["generate", *numbers, *texts])
    config = read_command_line(GenerateConfig, "generate", options=OPTIONS).config
    assert (config.top_k, config.top_p, config.guidance_scale, config.images_per_prompt) == (5, 0.5, 2.0, 3)
    assert (config.seed, config.prompts, config.negative_prompt) == (7, "12:30", "#2")
    assert (config.policy, config.output) == (Path("off"), Path.home())


@pytest.mark.parametrize(
    "text", ["off", "null", "1.0", "a: b", "'", '"', "\\n", "é 🙂", "a\x85b\u2028c", "\x7f\t", "${root}"]
)
def test_a_prompt_is_taken_letter_by_letter(monkeypatch, text):
    monkeypatch.setattr(sys, "argv", ["generate", "--prompts", text])
    assert read_command_line(GenerateConfig, "generate", options=OPTIONS).config.prompts == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guidance-scale", "-1"], "guidance_scale: .* greater than or equal to 0, found -1"),
        (["--num-images", "0"], "images_per_prompt: .* greater than or equal to 1, found 0"),
        (["--top-p", "1.5"], "top_p: .* less than or equal to 1, found 1.5"),
        (["--top-k", "-1"], "top_k: .* greater than or equal to 0, found -1"),
        (["--top-k", "few"], "top_k: .* valid integer, .* found 'few'"),
        (["--seed", "-1"], "seed: .* greater than or equal to 0, found -1"),
        (["--batch-size", "0"], "batch_size: .* greater than or equal to 1, found 0"),
        (["--temperature", "-1"], "temperature: .* greater than or equal to 0, found -1"),
        (["--top-p", "0"], "top_p: .* greater than 0, found 0"),
        (["--negative-prompt", "a square"], "has no effect without guidance"),
        (["--prompts", "a cross " * 100], r"has \d+ tokens, there is room for \d+"),
        (["--kv-cache-gib", "0.0001"], "kv_cache_gib"),
        (["--prompts", " "], "prompts: empty prompt"),
        (["--prompts", "a\x07cross"], r"prompts: control characters \\x07 in"),
        (["--guidance-scale", "2", "--negative-prompt", "a\tb"], r"negative_prompt: control characters \\t in"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: file not found"),
        (["--model", "nowhere"], "nowhere: no policy there"),
        (["--tokenizer", "nowhere"], "nowhere/encoder.jit: not found"),
        (["--engine", "transformers", "--output", "/proc/none"], "/proc/none: cannot be written: "),
    ],
)
def test_bad_input_is_refused_with_what_to_change(world, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(world, tmp_path / "output", "--prompts", "a cross", *arguments)


def test_prompts_from_standard_input(world, tmp_path):
    command = [sys.executable, "-m", "simplear_rl.generate", "--prompts", "-", "--engine", "transformers"]
    paths = ["--model", world / "policy", "--tokenizer", world / "tokenizer", "--output", tmp_path / "output"]
    done = subprocess.run(
        [*command, *map(str, paths)], input=b"a cross\n\na circle\n", cwd=REPOSITORY, capture_output=True, timeout=120
    )
    assert done.returncode != 0
    assert b"line 2: empty prompt" in done.stderr
