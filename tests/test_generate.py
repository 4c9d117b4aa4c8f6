"""`python -m simplear_rl.generate`: files, metadata, seeds, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from simplear_rl.cli import read_command_line
from simplear_rl.config.generate import GenerateConfig
from simplear_rl.generate import OPTIONS, generate

REPOSITORY = Path(__file__).parents[1]


def run(world, output, *arguments, model=None):
    """Draw as the command does; returns the content of the image files, by name."""
    paths = ["--model", model or world / "policy", "--tokenizer", world / "tokenizer", "--output", output]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["generate", *map(str, [*paths, *arguments])])
        read_command_line(GenerateConfig, "generate", options=OPTIONS).run(generate)
    return {file.name: file.read_bytes() for file in output.glob("0*.png")}


@pytest.mark.parametrize("engine", ["vllm", "transformers", "sjd"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
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


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
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


def test_the_policy_is_named_as_the_user_named_it(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    run(world, tmp_path, "--prompts", "a cross", "--engine", "transformers", model="policy")
    assert Image.open(tmp_path / "00000-00.png").text["model"] == "policy"


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
        (["--prompts", " "], "empty caption"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--model", "nowhere"], "nowhere: no policy there"),
        (["--tokenizer", "nowhere"], "nowhere/encoder.jit: not found"),
    ],
)
def test_bad_input_is_refused_with_what_to_change(world, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(world, tmp_path / "output", "--prompts", "a cross", *arguments)


def test_prompts_from_standard_input(world, tmp_path):
    command = [sys.executable, "-m", "simplear_rl.generate", "--prompts", "-", "--engine", "transformers"]
    paths = ["--model", world / "policy", "--tokenizer", world / "tokenizer", "--output", tmp_path / "output"]
    done = subprocess.run(
        [*command, *map(str, paths)], input=b"a cross\n\n", cwd=REPOSITORY, capture_output=True, timeout=120
    )
    assert done.returncode != 0
    assert b"line 2: empty prompt" in done.stderr
