"""GenEval 2: its rules on answer probabilities, its files, and all of it with a small judge."""

import json
import math
import re
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image
from scipy.stats import gmean

from simplear_rl.benchmarks.benchmark import Sample, inspect, require_images
from simplear_rl.benchmarks.geneval2 import NUMBERS, SKILLS, accepted, confidence_intervals, scores
from simplear_rl.benchmarks.geneval2_files import GenEval2, read_entries
from simplear_rl.benchmarks.output import open_folder, write_results
from simplear_rl.benchmarks.scorer import BENCHMARKS, BenchmarkScorer
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.load import load_config
from simplear_rl.config.rewards import GenEval2RewardConfig
from simplear_rl.errors import UserError
from simplear_rl.rewards.geneval2 import GenEval2Reward
from simplear_rl.vision.files import require_judge
from simplear_rl.vision.vqa import TransformersJudge
from tests.visual_judge import WORDS, make_model

LINES = [
    {
        "prompt": "two red circles",
        "atom_count": 3,
        "vqa_list": [["How many circles are there", "two"], ["is there a red circle", "Yes"]],
        "skills": ["count", "attribute"],
    },
    {
        "prompt": "a circle and a square",
        "atom_count": 4,
        "vqa_list": [
            ["is there a circle", "Yes"],
            ["is there a square", "Yes"],
            ["is the circle red", "Yes"],
        ],
        "skills": ["object", "object", "position"],
    },
]


def write(file, lines=LINES):
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


class Table:
    """A judge that knows how likely every spelling is."""

    def __init__(self, random):
        self.random, self.asked = random, []

    def probabilities(self, images, questions, answers):
        self.asked += [*zip(questions, answers, strict=True)]
        return self.random.random(len(questions)).astype(np.float32)


def test_spellings_of_an_answer():
    assert accepted("How many cats?", "two") == ("two", "Two", " two", " Two", "2", " 2")
    assert accepted("How many cats?", "ten")[-1] == " 10"
    assert accepted("Is a cat left of many dogs?", "Yes") == ("Yes", "yes", " yes", " Yes")


def test_scores_are_those_of_the_published_analysis_on_random_answers(tmp_path):
    random = np.random.default_rng(0)
    lines = []
    for i in range(1000):
        number, answer = int(random.integers(1, 9)), NUMBERS[random.integers(0, 10)]
        skills = random.choice(SKILLS, number).tolist()
        asked = [["How many cats?", answer] if skill == "count" else ["Is it so?", "Yes"] for skill in skills]
        atoms = int(random.integers(3, 11))
        lines.append({"prompt": f"prompt {i}", "atom_count": atoms, "vqa_list": asked, "skills": skills})
    benchmark = GenEval2(read_entries(write(tmp_path / "data.jsonl", lines)), "table")
    judge, image = Table(random), np.zeros((1, 1, 3), np.uint8)
    rows = [row for i in range(1000) for row in benchmark.judge(i, [Sample("a.png", 0, image)], judge)]
    # As soft_tifa_analysis.py says: skills by question, atom counts by the geometric mean of a prompt.
    by_skill, by_atoms = defaultdict(list), defaultdict(list)
    tables = [[answer["probability"] for answer in row["answers"]] for row in rows]
    for line, table in zip(lines, tables, strict=True):
        by_atoms[f"atoms_{line['atom_count']}"].append(gmean(table))
        for skill, probability in zip(line["skills"], table, strict=True):
            by_skill[skill].append(probability)
    expected = {name: 100 * sum(values) / len(values) for name, values in [*by_skill.items(), *by_atoms.items()]}
    expected["soft_tifa_am"] = 100 * sum(sum(table) / len(table) for table in tables) / 1000
    expected["soft_tifa_gm"] = 100 * sum(gmean(table) for table in tables) / 1000
    found = scores(rows)
    assert list(found) == benchmark.score_names() and found == pytest.approx(expected, rel=1e-12)
    assert judge.asked[0][0].endswith("? Answer in one word.") and len(judge.asked) == sum(map(len, tables))
    for name, (low, high) in confidence_intervals(rows, seed=0, resamples=200).items():
        assert low < found[name] < high


def test_several_images_count_as_one_prompt():
    def row(prompt, probability):
        answers = [{"skill": "object", "probability": probability}]
        return {"prompt": prompt, "atom_count": 3, "answers": answers} | dict.fromkeys(
            ["arithmetic", "geometric"], probability
        )

    found = scores([row("a", 0.0), row("a", 1.0), row("b", 1.0)])
    assert found == pytest.approx({"soft_tifa_gm": 75, "soft_tifa_am": 75, "atoms_3": 75, "object": 200 / 3})
    with pytest.raises(ValueError, match="no images"):
        scores([])


def test_bad_lines_are_named_together(tmp_path):
    bad = [
        LINES[0] | {"skills": ["count"]},
        LINES[0] | {"vqa_list": [["How many?", "2"], ["Is it?", "Yes"]]},
        LINES[0] | {"vqa_list": [["How many?", "two"], ["Is it?", "No"]]},
        LINES[0] | {"skills": ["count", "colour"]},
        LINES[1],
        LINES[1],
    ]
    with pytest.raises(UserError) as raised:
        read_entries(write(tmp_path / "data.jsonl", bad))
    said = str(raised.value)
    for part in "line 1: .*1 skills", "line 2: .*'2'", "line 3: .*'No'", "line 4: skills.1", "line 6: .*twice":
        assert len(re.findall(part, said)) == 1
    with pytest.raises(UserError, match="published at https://github.com/facebookresearch/GenEval2"):
        read_entries(tmp_path / "none.jsonl")


def test_prompts_are_tidied_and_no_key_comes_twice(tmp_path):
    file = write(tmp_path / "data.jsonl", [line | {"prompt": line["prompt"] + "\u00a0 "} for line in LINES])
    benchmark = GenEval2(read_entries(file), "table")
    assert benchmark.texts == [line["prompt"] for line in LINES]
    (tmp_path / "images.json").write_text(json.dumps({benchmark.texts[0] + " ": "mine.png"}))
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
    assert [sample.name for sample in benchmark.load(tmp_path, 0, 1)[0]] == ["mine.png"]
    assert benchmark.extra(tmp_path) == []
    (tmp_path / "images.json").write_text('{"a": "x.png", "a ": "y.png"}')
    assert "two keys are called a" in benchmark.load(tmp_path, 0, 1)[1][0]
    file.write_text(file.read_text().replace('"atom_count": 4', '"atom_count": 4, "atom_count": 5') + "{}\n")
    with pytest.raises(UserError, match=r"data.jsonl, line 2: two keys are called atom_count\n.*line 3: prompt: Field"):
        read_entries(file)
    write(file, [LINES[0] | {"prompt": " \u00a0"}])
    with pytest.raises(UserError, match="line 1: prompt: "):
        read_entries(file)


def test_folder_of_images_is_the_published_one(tmp_path):
    benchmark = GenEval2(read_entries(write(tmp_path / "data.jsonl")), "table")
    images = np.arange(2, dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 3), np.uint8)
    folder = tmp_path / "images"
    for index in range(2):
        benchmark.write(folder, index, images[index : index + 1])
    index = json.loads((folder / "images.json").read_text(encoding="utf-8"))
    assert list(index) == benchmark.texts
    assert inspect(benchmark, folder, 1)[1] == []
    (folder / index[benchmark.texts[1]]).rename(folder / "mine.png")
    assert "missing (prompt 'a circle and a square')" in inspect(benchmark, folder, 1)[1][0]
    (folder / "images.json").write_text(json.dumps(index | {benchmark.texts[1]: "mine.png", "else": "x.png"}))
    checksums, problems = inspect(benchmark, folder, 1)
    assert checksums[1] == [Sample("", 0, images[1]).checksum] and problems == [
        f"{folder / 'images.json'}: 'else' is no prompt of the benchmark"
    ]
    # Numbers may be those of another choice of prompts: where there is an index, only it says whose an image is.
    (folder / "images.json").write_text(json.dumps({benchmark.texts[1]: "00000-00.png"}))
    assert benchmark.load(folder, 0, 1) == (
        [],
        [f"{folder / 'images.json'}: the prompt {benchmark.texts[0]!r} is missing"],
    )
    benchmark.write(tmp_path / "several", 1, images)
    assert [sample.pixels.max() for sample in benchmark.load(tmp_path / "several", 1, 2)[0]] == [0, 1]


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    words = [*WORDS, "How", "many", "circles", "are", "two", "Two", "2", "Answer", "in"]
    return make_model(tmp_path_factory.mktemp("judge"), words)


def test_a_judge_gives_the_probabilities_of_first_tokens(judge_folder, pictures):
    judge = TransformersJudge(judge_folder, batch_size=2, dtype="float32")
    vocabulary = judge.processor.tokenizer.get_vocab()
    every = [[word] for word in vocabulary]
    found = judge.probabilities(pictures[:1] * len(every), ["is there a circle"] * len(every), every)
    assert found.dtype == np.float32
    assert 0.99 < sum(p for p, (word,) in zip(found, every, strict=True) if word not in ("<|unk|>",)) <= 1 + 1e-5
    # Spellings that begin alike count twice; here a space is no token.
    (two,) = judge.probabilities(pictures[:1], ["is there a circle"], [accepted("How many", "two")])
    parts = dict(zip(vocabulary, found, strict=True))
    assert two == pytest.approx(2 * (parts["two"] + parts["Two"] + parts["2"]), rel=1e-5)
    margin = judge.margins(pictures[:1], ["is there a circle"])
    assert math.isfinite(margin[0])


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_the_reward_is_the_score_of_the_benchmark(judge_folder, tmp_path, pictures, mean):
    file = write(tmp_path / "data.jsonl")
    config = GenEval2RewardConfig(questions=file, judge=judge_folder, dtype="float32", mean=mean)
    reward = GenEval2Reward(config)
    texts = [line["prompt"] for line in LINES]
    assert reward.check(texts) == []
    found = reward.score(np.stack(pictures[:2]), texts)
    benchmark = GenEval2(read_entries(file), "small")
    rows = [benchmark.judge(i, [Sample("a.png", 0, pictures[i])], reward.judge)[0] for i in range(2)]
    assert found == pytest.approx([row[mean] for row in rows], rel=1e-5) and 0 < found.min() <= found.max() <= 2
    with pytest.raises(UserError, match="has no questions for 'else', nor for 0 more of 1 prompts"):
        reward.check(["else"])


def test_an_evaluation_with_a_small_judge(judge_folder, tmp_path, pictures):
    """Images of others, in the published layout: scores, intervals and a page."""
    write(tmp_path / "data.jsonl")
    (tmp_path / "images").mkdir()
    named = {line["prompt"]: f"their-{i}.png" for i, line in enumerate(LINES)}
    (tmp_path / "images" / "images.json").write_text(json.dumps(named), encoding="utf-8")
    for i in range(2):
        Image.fromarray(pictures[i]).save(tmp_path / "images" / f"their-{i}.png")
    judge = {"model": str(judge_folder), "dtype": "float32", "batch_size": 2}
    values = [f"root={tmp_path}", f"prompts={tmp_path}/data.jsonl", f"judge={json.dumps(judge)}", "policy=null"]
    values += [f"score_only={tmp_path}/images", f"output={tmp_path}/out"]
    config = load_config(EvaluateConfig, CONFIGS / "geneval2" / "evaluate.yaml", values)
    assert config.models == [judge_folder]
    require_judge(config)
    benchmark = BENCHMARKS["geneval2"](config)
    assert require_images(benchmark, config.images, 1, allow_missing=False).keys() == {0, 1}
    open_folder(config, benchmark)
    scorer = BenchmarkScorer(config, benchmark, None)
    for i in range(2):
        scorer.judge(i, config.images, config.output)
    summary = write_results(config, benchmark)
    assert (
        list(summary["scores"])
        == benchmark.score_names()
        == [
            *("soft_tifa_gm", "soft_tifa_am", "atoms_3", "atoms_4"),
            *("object", "attribute", "count", "position"),
        ]
    )
    assert summary["judge"] == str(judge_folder) and summary["images"] == 2
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "required: How many circles are there → two; is there a red circle → Yes" in page and "4 atoms" in page
    assert re.findall(r'<img src="([^"]+)"', page) == ["../images/their-0.png", "../images/their-1.png"]


def test_the_default_judge_and_what_cannot_judge(tmp_path):
    file, values = CONFIGS / "geneval2" / "evaluate.yaml", [f"root={tmp_path}"]
    assert load_config(EvaluateConfig, file, values).judge_name == "Qwen/Qwen3-VL-8B-Instruct"
    with pytest.raises(UserError, match="judge.type: geneval2 needs probabilities, which mplug does not give"):
        load_config(EvaluateConfig, file, [*values, "judge.type=mplug"])
    with pytest.raises(UserError, match="`prompts` is needed: the file of geneval2's prompts"):
        load_config(EvaluateConfig, file, [*values, "prompts=null"])
