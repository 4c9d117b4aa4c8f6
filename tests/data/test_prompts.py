import json
from collections import Counter

import pyarrow as pa
import pytest
from pyarrow import parquet

from simplear_rl.data.prompts import (
    PromptRow,
    further_prompts,
    prompts_of,
    prompts_of_step,
    read_prompts,
    read_rows,
)
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Draw
from simplear_rl.policy.sampling import Sampling
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
        (b"\n \n", "no prompts in it"),
        (b"a\tb\nc\td\n", r"line 1: control characters \\t in"),
        (b"a\rb\n", r"line 1: control characters \\r in"),
        ("a cross".encode("utf-16"), "UTF-16; save it as UTF-8"),
        (b'{"prompt": "a cross"}\n', "line 1: JSON; name the file .jsonl"),
        (b'[\n"a cross",\n"a circle"]\n', "line 1: JSON"),
        (b'[{"prompt":"a"},\n{"prompt":"b"}]', "line 1: JSON.*\n.*line 2: JSON"),
        (b'["a cat",\n"a dog"]', "line 1: JSON"),
        (b'\xef\xbb\xbf[ "a cat",\n"a dog" ]\n', "line 1: JSON"),
        (b'{ "prompts": ["a cat",\n "a dog"]}', "line 1: JSON"),
        (b"a cross\n{'prompt': 'a cat'}\n['a cat']\n", "line 2: JSON.*\n.*line 3: JSON"),
        (b"prompt,category\na red circle,single\n", "its first line 'prompt,category' is the header of a table"),
        (b"id\tcaption\n1\ta red circle\n", "is the header of a table; name it .csv or .tsv"),
        (b"caption\na red circle\n", "is the header of a table"),
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


FAMILY = "a family \U0001f468\u200d\U0001f469\u200d\U0001f467"


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("\ufeffa red circle\na blue cross\n", ["a red circle", "a blue cross"]),
        ("a red circle\n\ufeffa blue cross\n", ["a red circle", "a blue cross"]),  # two files, one behind the other
        ("a red\u00a0circle\n", ["a red circle"]),
        ("\u4e00\u53ea\u732b\u3000\u5728\n", ["\u4e00\u53ea\u732b \u5728"]),
        ("a\u2028b\u2009c\u202fd\n", ["a b c d"]),
        (FAMILY + "\n", [FAMILY]),
        ("\u0645\u06cc\u200c\u062e\u0648 \u2764\ufe0f\n", ["\u0645\u06cc\u200c\u062e\u0648 \u2764\ufe0f"]),
        ("a red circle\n\n\n \r\n", ["a red circle"]),
        ("{a} [b] y\n[x] y, text\n", ["{a} [b] y", "[x] y, text"]),
        ('[red] circle\n{{b}} [\n"[c]"', ["[red] circle", "{{b}} [", '"[c]"']),
        ("a sign $^$, text, in red\nb\n", ["a sign $^$, text, in red", "b"]),
    ],
)
def test_invisible_characters(tmp_path, encode, text, prompts):
    file = tmp_path / "prompts.txt"
    file.write_text(text, newline="")
    assert read_prompts(file, encode) == prompts


def test_all_bad_lines_are_listed_at_once(tmp_path, encode):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"a cross\n\na\x07b\n\xff\n" + b"red " * 20 + b"\na circle\n")
    with pytest.raises(UserError) as error:
        read_prompts(file, encode)
    assert [line.split(": ")[0] for line in str(error.value).split("\n")] == [f"{file}, line {n}" for n in (2, 3, 4, 5)]
    file.write_bytes(b"\x07\n" * 30)
    with pytest.raises(UserError, match="line 20: .*\n.*: 10 more bad lines$"):
        read_prompts(file, encode)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.jsonl", '{"tag": "x", "prompt": "a red circle"}\n{"prompt": "blue, \\"and\\ntwo"}\n\n'),
        ("p.JSONL", '\ufeff{"text": "a red circle", "caption": "no"}\n{"text": "blue, \\"and\\ttwo"}'),
        ("p.csv", 'prompt,category\na red circle,single\n"blue, ""and\ntwo",two\n'),
        ("p.csv", '\ufeffid,Caption\r\n1,a red circle\r\n2,"blue, ""and\r\ntwo"\r\n'),
        ("p.tsv", 'id\ttext\n1\ta red circle\n2\t"blue, ""and two"\n'),
        ("p.tsv", 'text\ttag\na red circle\tx\n"blue, ""and two"\t\n \r\n\n'),
    ],
)
def test_prompts_are_read_by_column(tmp_path, encode, name, text):
    (tmp_path / name).write_text(text, newline="")
    assert read_prompts(tmp_path / name, encode) == ["a red circle", 'blue, "and two']


def test_other_columns_and_weights_come_with_the_prompt(tmp_path, encode):
    rows = [
        {"prompt": "a red\ncircle", "answer": 3, "weight": 2, "text": "x"},
        {"prompt": "a cross", "answer": None, "weight": 0.5, "text": "y"},
    ]
    expected = [
        PromptRow("a red circle", {"answer": 3, "text": "x"}, 2),
        PromptRow("a cross", {"answer": None, "text": "y"}, 0.5),
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    for name in "p.jsonl", "p.parquet":
        assert read_rows(tmp_path / name, encode) == expected
    (tmp_path / "p.csv").write_text("prompt,answer,weight\na cross,3,0.5\n")
    assert read_rows(tmp_path / "p.csv", encode) == [PromptRow("a cross", {"answer": "3"}, 0.5)]


def test_what_a_line_lacks_is_none(tmp_path, encode):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "tag": "x"}\n{"prompt": "b", "answer": [1]}\n')
    columns = [row.columns for row in read_rows(tmp_path / "p.jsonl", encode)]
    assert columns == [{"tag": "x", "answer": None}, {"tag": None, "answer": [1]}]


def test_files_of_geneval_and_flow_grpo_are_taken_as_they_are(tmp_path, encode):
    """GenEval's metadata file; flow_grpo has the same with other keys, and texts with a prompt a line."""
    (tmp_path / "evaluation_metadata.jsonl").write_text(
        '{"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a red cow"}\n'
        '{"tag": "counting", "include": [{"class": "cow", "count": 2}], "exclude": [{"class": "cow", "count": 3}], '
        '"t2i_prompt": "two cows", "prompt": "two cows", "class": "geneval/counting"}\n'
    )
    first, second = read_rows(tmp_path / "evaluation_metadata.jsonl", encode)
    assert (first.text, first.columns["include"][0]["color"], first.columns["exclude"]) == ("a red cow", "red", None)
    assert (second.text, second.columns["exclude"][0]["count"]) == ("two cows", 3)
    (tmp_path / "train.txt").write_text('a sign "{one}",\tred\nA.photo\n')
    assert read_prompts(tmp_path / "train.txt", encode) == ['a sign "{one}", red', "A.photo"]


def test_tags_are_no_header(tmp_path, encode):
    (tmp_path / "tags.txt").write_text("1girl, solo, text, outdoors\na cat, sitting\n")
    assert read_prompts(tmp_path / "tags.txt", encode) == ["1girl, solo, text, outdoors", "a cat, sitting"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "p.jsonl",
            '{"prompt": "a"}\n{"x": 1}\n{"prompt": 3}\na cross\n',
            "2: expected .*\n.*3: expected .*\n.*4: not",
        ),
        ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": ""}\n', "line 2: not JSON.*\n.*line 3: empty prompt"),
        ("p.jsonl", '{"prompt": "a\\u0007"}\n', r"line 1: control characters \\x07"),
        ("p.jsonl", '{"prompt": "a\\ud800"}\n', r"line 1: control characters \\ud800"),
        ("p.jsonl", "[" * 5000, "line 1: not JSON"),
        ("p.csv", "name,category\na,b\n", "expected a column prompt or text or caption, found name, category"),
        ("p.csv", "prompt,category\na,b,c\n\nd,e\n", "line 2: expected 2 fields, found 3\n.*line 3: expected 2 fields"),
        ("p.csv", 'prompt\n"a', "line 2: not CSV"),
        ("p.csv", "prompt\n", "no prompts in it"),
        ("p.csv", "", "found none"),
        ("p.tsv", "prompt\n\xff", "line 2: not UTF-8"),
        ("p.csv", "prompt,answer,answer\na,1,2\n", "p.csv: two columns are called answer"),
        (
            "p.jsonl",
            '{"prompt": "a", "prompt": "b"}\n{"prompt": "c", "of": {"x": 1, "x": 2}}\n',
            "line 1: two keys are called prompt\n.*line 2: two keys are called x$",
        ),
        ("p.json", '{"prompt": "a"}', "p.json: JSON as a whole; write an object .* a line, and name it .jsonl"),
        ("p.jsonl", '{"prompt": "a", "weight": -1}', "line 1: weight: expected a number of 0 or more, found -1"),
        ("p.jsonl", '{"prompt": "a", "weight": true}', "line 1: weight: expected a number of 0 or more, found True"),
        ("p.csv", "prompt,weight\na,\nb,nan\n", "line 2: weight: expected .* ''\n.*line 3: weight: .* found 'nan'"),
        ("p.csv", "prompt,weight\na,0\nb,0.0\n", "the column `weight` is 0 in every row"),
        ("p.parquet", "PAR1", "p.parquet: not a readable Parquet file"),
    ],
)
def test_broken_tables_are_refused(tmp_path, encode, name, text, message):
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / name, encode)


def test_parquet_without_prompts_is_refused(tmp_path, encode):
    parquet.write_table(pa.table({"name": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match="expected a column prompt or text or caption, found name"):
        read_prompts(tmp_path / "p.parquet", encode)
    parquet.write_table(pa.table({"prompt": ["a", None, ""]}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match="row 2: expected an object .*\n.*row 3: empty prompt"):
        read_prompts(tmp_path / "p.parquet", encode)


def test_missing_file_is_named(tmp_path, encode):
    with pytest.raises(UserError, match="none.txt: cannot be read: No such file"):
        read_prompts(tmp_path / "none.txt", encode)


def test_what_reads_like_a_file_and_is_none_is_no_prompt(tmp_path, encode, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a folder").mkdir()
    (tmp_path / "cats").mkdir()
    for named in str(tmp_path), "~", "./a folder", "x.jsonl/..":
        with pytest.raises(UserError, match="a folder, not a file" if named != "x.jsonl/.." else "not found"):
            prompts_of(named, encode)
    for named in "missing.json", "missing.MD", "x.jsonl.gz", "~/prompts_file", "x/y", "my prompts.txt", "p.parquet":
        with pytest.raises(UserError, match=f"prompts: {named}: file not found; expected a file with a prompt a line"):
            prompts_of(named, encode)
    for prompt in "a folder", "cats", "cat", "a 1/2 circle", "see a.md", "a" * 300:
        assert prompts_of(prompt, lambda text: []) == [prompt]
    (tmp_path / "prompts_file").write_text("a cross\n")
    assert prompts_of("~/prompts_file", encode) == prompts_of("prompts_file", encode) == ["a cross"]


def test_every_prompt_comes_once_an_epoch_and_the_order_is_a_function_of_the_seed():
    prompts = [PromptRow(f"prompt {i}") for i in range(10)]
    steps = [prompts_of_step(prompts, step, 4, seed=0) for step in range(1, 6)]
    drawn = [p.text for step in steps for p in step]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(row.text for row in prompts)
    assert drawn[:10] != drawn[10:]
    assert [p.index for p in steps[0]] == [0, 1, 2, 3]
    assert prompts_of_step(prompts, 3, 4, seed=0) == steps[2] != prompts_of_step(prompts, 3, 4, seed=1)


def test_weights_say_how_often_a_prompt_is_drawn():
    weights = {"a": 0, "b": 1, "c": 1, "d": 2.5, "e": 0.25}
    prompts = [PromptRow(text, {"of": text}, weight) for text, weight in weights.items()]
    steps = [prompts_of_step(prompts, step, 3, seed=0) for step in range(1, 2001)]
    drawn = Counter(prompt.text for step in steps for prompt in step)
    for text, weight in weights.items():
        assert drawn[text] == pytest.approx(6000 * weight / 4.75, rel=0.1)
    assert all(prompt.columns == {"of": prompt.text} for prompt in steps[0])
    assert prompts_of_step(prompts, 7, 3, seed=0) == steps[6] != prompts_of_step(prompts, 7, 3, seed=1)


def test_equal_weights_are_no_weights():
    plain, equal = ([PromptRow(str(i), {}, weight) for i in range(7)] for weight in (1.0, 0.3))
    for step in range(1, 9):
        assert prompts_of_step(plain, step, 5, seed=2) == prompts_of_step(equal, step, 5, seed=2)


def test_further_prompts_of_a_step_are_its_others_and_are_counted_on():
    prompts = [PromptRow(f"prompt {i}", {"n": i}) for i in range(10)]
    for step in 1, 2, 3:  # the third one ends an epoch and begins another, with a prompt that it has already
        own = prompts_of_step(prompts, step, 4, seed=0)
        further = list(further_prompts(prompts, Draw(own, 2, 0, step, Sampling())))
        assert [prompt.index for prompt in further] == list(range(4, 4 + len(further)))
        others = {row.text for row in prompts} - {prompt.text for prompt in own}
        assert sorted(prompt.text for prompt in further) == sorted(others)


def test_further_prompts_of_weight_0_are_never_drawn_and_those_of_large_weight_first():
    prompts = [PromptRow(str(i), {"n": i}, float(i)) for i in range(5)]
    first = Counter()
    for step in range(1, 1001):
        own = prompts_of_step(prompts, step, 1, seed=0)
        further = list(further_prompts(prompts, Draw(own, 2, 0, step, Sampling())))
        assert {prompt.text for prompt in further} == {"1", "2", "3", "4"} - {own[0].text}
        assert all(prompt.columns == {"n": int(prompt.text)} for prompt in further)
        first[further[0].text] += 1
    assert first["3"] > first["2"] > first["1"]
