import pytest

from simplear_rl.data.prompts import prompts_of_step, read_prompts
from simplear_rl.errors import UserError
from simplear_rl.policy.vocabulary import read_encoder


@pytest.fixture(scope="module")
def encode(policy):
    return read_encoder(policy, max_tokens=12)


def test_prompts_are_the_lines(tmp_path, encode):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"a red circle\r\na cross\n  two cross")
    assert read_prompts(file, encode) == ["a red circle", "a cross", "two cross"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no prompts in it"),
        (b"a circle\n\na cross\n", "line 2: empty prompt"),
        (b"a circle\n\xff\xfe\n", "line 2: not UTF-8"),
        (b"a circle\na\x00cross\n", "line 2: control characters"),
        (b"a cross\n" + b"a red circle " * 9 + b"\n", "line 2: .* has 32 tokens, there is room for 12"),
    ],
)
def test_broken_lines_are_named(tmp_path, encode, content, message):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_prompts(file, encode)
    assert str(file) in str(error.value)


def test_missing_file_is_named(tmp_path, encode):
    with pytest.raises(UserError, match="none.txt: cannot be read: No such file"):
        read_prompts(tmp_path / "none.txt", encode)


def test_every_prompt_comes_once_an_epoch_and_the_order_is_a_function_of_the_seed():
    prompts = [f"prompt {i}" for i in range(10)]
    steps = [prompts_of_step(prompts, step, 4, seed=0) for step in range(1, 6)]
    drawn = [p.text for step in steps for p in step]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(prompts)
    assert drawn[:10] != drawn[10:]
    assert [p.index for p in steps[0]] == [0, 1, 2, 3]
    assert prompts_of_step(prompts, 3, 4, seed=0) == steps[2] != prompts_of_step(prompts, 3, 4, seed=1)
