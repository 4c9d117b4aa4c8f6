"""The DPG-Bench rules on scripted answers, against tables computed by hand."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from simplear_rl.benchmarks.dpg import (
    apply_dependencies,
    confidence_intervals,
    grid,
    judge,
    scores,
    split_grid,
    summary,
)
from simplear_rl.benchmarks.dpg_questions import COLUMNS, Question, read_dpg_prompts, read_questions
from simplear_rl.errors import UserError

PUBLISHED_PROMPTS = Path(__file__).parents[3] / "shared" / "data" / "dpg_prompts.jsonl"
PROMPTS = {"p": "a black cat on a mat", "q": "a red dog\nby a tree, photographed"}
ROWS = """\
p,"a black cat on a mat",,1,0,entity,whole,entity - whole (cat),Is there a cat?
p,"a black cat on a mat",,2,1,attribute,color,"attribute - color (cat, black)",Is the cat black?
p,"a black cat on a mat",,3,2,relation,spatial,"relation - spatial (cat, mat, on)",Is the black cat on a mat?
q,"a red dog
by a tree, photographed",,1,0,entity,whole,entity - whole (dog),Is there a dog?
q,"a red dog
by a tree, photographed",,2,"0, 1",attribute,color,"attribute - color (dog, red)",Is the dog red?
q,"a red dog
by a tree, photographed",,3,2,relation,spatial,"relation - spatial (dog, tree, by)",Is the red dog by a tree?
q,"a red dog
by a tree, photographed",,4,0,global,,global - (photo),Is this a photo?
"""
# Of each prompt's two images, the answers to its questions.
ANSWERS = {
    "p": (["yes", "yes", "yes"], ["yes", "no", "no"]),
    "q": (["no", "yes", "yes", "yes"], ["yes", "no", "yes", "Yes"]),
}


def write(folder, rows=ROWS, header=COLUMNS):
    file = folder / "dpg.csv"
    file.write_text(",".join(header) + "\n" + rows)
    return file


class ScriptedJudge:
    """Reads the answers from ANSWERS; image k is filled with k."""

    name = "scripted"

    def __init__(self, questions):
        self.questions = questions

    def answer(self, images, questions):
        return [self.reply(int(image[0, 0, 0]), question) for image, question in zip(images, questions, strict=True)]

    def reply(self, image, text):
        for item, known in self.questions.items():
            for question in known:
                if question.text == text:
                    return ANSWERS[item][image][question.id - 1]
        raise KeyError(text)


def results(questions):
    rows = []
    for item, known in questions.items():
        images = {f"{item}/{k}.png": np.full((2, 2, 3), k, np.uint8) for k in range(2)}
        rows += judge(item, PROMPTS[item], known, images, ScriptedJudge(questions))
    return json.loads(json.dumps(rows))  # as they come back from results.jsonl


def question(number, *parents):
    return Question(number, f"question {number}", parents, "entity", "entity - whole")


def test_corrected_rules(tmp_path):
    rows = results(read_questions(write(tmp_path), PROMPTS))
    assert [row["filename"] for row in rows] == ["p/0.png", "p/1.png", "q/0.png", "q/1.png"]
    assert [row["score"] for row in rows] == pytest.approx([1, 1 / 3, 1 / 4, 1 / 4])
    zeroed = [[entry["id"] for entry in row["answers"] if entry["zeroed"]] for row in rows]
    assert zeroed == [[], [], [2, 3], [3]]
    assert rows[3]["answers"][3] == {
        "id": 4,
        "question": "Is this a photo?",
        "broad": "global",
        "detailed": "global -",
        "answer": "Yes",
        "zeroed": False,
    }
    assert scores(rows) == pytest.approx(
        {
            "total": 100 * (2 / 3 + 1 / 4) / 2,
            "entity": 75,  # p: 1, 1; q: 0, 1
            "entity - whole": 75,
            "attribute": 25,  # p: 1, 0; q: 0, 0
            "attribute - color": 25,
            "relation": 25,  # p: 1, 0; q: 0, 0
            "relation - spatial": 25,
            "global": 50,  # q: 1, 0
            "global -": 50,
        }
    )


def test_official_rules(tmp_path):
    rows = results(read_questions(write(tmp_path), PROMPTS, "official"))
    # Question 1 of p is the first of the file and skipped; question 2 depends on it.
    assert [entry["id"] for entry in rows[0]["answers"]] == [2, 3]
    assert [row["score"] for row in rows] == [None, None, 0.25, 0.25]
    written = summary(rows, "scripted", seed=0, rules="official")
    assert written["dropped"] == {"p": "a question depends on question 1, which is not there"}
    assert written["scores"] == {
        "total": 25,
        "entity": 100,  # the second image of q, before zeroing: yes, no, yes, Yes
        "entity - whole": 100,
        "attribute": 0,
        "attribute - color": 0,
        "relation": 100,
        "relation - spatial": 100,
        "global": 0,
        "global -": 0,
    }


def test_summary_says_what_the_numbers_depend_on(tmp_path):
    written = summary(results(read_questions(write(tmp_path), PROMPTS)), "scripted", seed=0)
    assert (written["images"], written["prompts"], written["dropped"]) == (4, 2, {})
    assert (written["rules"], written["judge"]) == ("corrected", "scripted")
    assert "do not compare" in written["note"]
    assert written["scores"].keys() == written["confidence_intervals"].keys()
    json.dumps(written)


def test_corrected_rules_refuse_rows_of_dropped_prompts(tmp_path):
    rows = results(read_questions(write(tmp_path), PROMPTS, "official"))
    with pytest.raises(ValueError, match="drop no prompt.*: p"):
        scores(rows)
    with pytest.raises(ValueError, match="no prompt has a score"):
        scores(rows[:2], "official")


def test_a_zero_propagates_in_the_order_of_the_file():
    chain = [question(1), question(2, 1), question(3, 2), question(4, 1, 3), question(5)]
    yes = dict.fromkeys(range(1, 6), True)
    assert apply_dependencies(chain, yes | {1: False}) == {1: False, 2: False, 3: False, 4: False, 5: True}
    assert apply_dependencies(chain, yes | {3: False}) == yes | {3: False, 4: False}
    # In place: a parent that comes later counts with its answer, not with what becomes of it.
    assert apply_dependencies([question(3, 2), question(2, 1), question(1)], {1: False, 2: True, 3: True})[3]


def test_official_rules_look_parents_up_until_one_counts_zero():
    class Judge:
        name = "scripted"

        def answer(self, images, questions):
            return ["no" if image[0, 0, 0] else "yes" for image in images]

    images = {"no.png": np.ones((1, 1, 3), np.uint8), "yes.png": np.zeros((1, 1, 3), np.uint8)}
    rows = judge("p", "prompt", [question(1), question(2, 1, 9)], images, Judge())
    assert [row["score"] for row in rows] == [0, None]
    assert rows[1]["dropped"] == "a question depends on question 9, which is not there"
    (row,) = judge("p", "prompt", [], {"yes.png": images["yes.png"]}, Judge())
    assert (row["answers"], row["score"], row["dropped"]) == ([], None, "no questions")


def test_every_question_needs_an_answer():
    class Judge:
        name = "silent"

        def answer(self, images, questions):
            return ["yes"] * 3

    with pytest.raises(ValueError, match="cannot reshape"):
        judge("p", "prompt", [question(1), question(2)], {"a.png": np.zeros((1, 1, 3), np.uint8)}, Judge())


@st.composite
def trees(draw):
    """Questions whose parents come before them, and two sets of answers, the first within the second."""
    ids = draw(st.permutations(range(1, draw(st.integers(1, 8)) + 1)))
    parents = [draw(st.lists(st.sampled_from(ids[:i]), unique=True)) if i else [] for i in range(len(ids))]
    some = {i: draw(st.booleans()) for i in ids}
    more = {i: some[i] or draw(st.booleans()) for i in ids}
    return [question(i, *above) for i, above in zip(ids, parents, strict=True)], some, more


@given(trees())
def test_dependencies_are_idempotent_and_monotone(tree):
    questions, some, more = tree
    counts, counts_of_more = apply_dependencies(questions, some), apply_dependencies(questions, more)
    assert apply_dependencies(questions, counts) == counts
    for question in questions:
        assert counts[question.id] <= some[question.id]
        assert counts[question.id] <= counts_of_more[question.id]
        assert all(counts[question.id] <= counts[parent] for parent in question.parents)


def test_confidence_intervals(tmp_path):
    def row(item, image, good):
        entry = {"id": 1, "broad": "entity", "detailed": "entity - whole", "zeroed": False}
        answer = entry | {"answer": "yes" if good else "no"}
        return {"item_id": str(item), "filename": str(image), "answers": [answer], "score": float(good)}

    # A prompt's four images agree: the interval is that of 100 prompts, not of 400 images.
    rows = [row(item, k, item < 50) for item in range(100) for k in range(4)]
    (low, high), entity = (confidence_intervals(rows, seed=0)[name] for name in ("total", "entity"))
    assert low == pytest.approx(50 - 196 * 0.5 / 10, abs=1.5)
    assert high == pytest.approx(50 + 196 * 0.5 / 10, abs=1.5)
    assert entity == (low, high)
    # Where one prompt alone has a category, resamples without it say nothing about it.
    rows[0]["answers"][0]["broad"] = "other"
    assert confidence_intervals(rows, seed=0)["other"] == (100, 100)


LINE = 'p,"a cat",,{id},{parents},entity,whole,entity - whole (cat),{text}\n'


def rows(*questions):
    return "".join(LINE.format(id=i, parents=f'"{parents}"', text=text) for i, parents, text in questions)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            rows((1, 0, "a?"), (2, "1,7", "b?")),
            "line 3: question 2 of item p depends on question 7, which is not there",
        ),
        (rows((1, 0, "a?"), (1, 0, "b?")), "line 3: item p has two questions 1"),
        (rows((1, 2, "a?"), (2, 0, "b?")), "line 2: question 1 of item p depends on question 2, which does not come b"),
        (rows((1, 1, "a?")), "line 2: question 1 of item p depends on question 1, which does not come before it"),
        (rows((1, 0, "a?"), (2, 0, " ")), "line 3: blank question_natural_language"),
        (rows(("one", 0, "a?")), "line 2: proposition_id: expected a number from 1, found 'one'"),
        (rows((0, 0, "a?")), "line 2: proposition_id: expected a number from 1, found 0"),
        (rows((1, "", "a?")), "line 2: dependency: expected numbers separated by commas, found ''"),
        (rows((1, "1;2", "a?")), "line 2: dependency: expected numbers separated by commas, found '1;2'"),
        (rows((1, 0, "a?")).replace("p,", ","), "line 2: blank item_id"),
        (rows((1, 0, "a?")).replace("entity,", ","), "line 2: blank category_broad"),
        (rows((1, 0, "a?")).replace("p,", "other,"), "item p: a prompt without questions"),
        ("p,1,0\n", "line 2: expected 9 fields, found 3"),
        (rows((1, 0, "a?")) + 'p,"never closed\n', "line 3: not CSV"),
        ("", "item p: a prompt without questions"),
    ],
)
def test_bad_rows(tmp_path, content, message):
    file = write(tmp_path, content)
    with pytest.raises(UserError) as error:
        read_questions(file, {"p": "a cat"})
    assert str(file) in str(error.value)
    assert message in str(error.value)


def test_all_bad_rows_are_reported_with_the_lines_they_begin_on(tmp_path):
    bad = ROWS.replace(",4,0,", ",4,9,").replace(",3,2,", ",3,3,")
    with pytest.raises(UserError) as error:
        read_questions(write(tmp_path, bad), PROMPTS | {"r": "a bird"})
    first, *places = str(error.value).splitlines()
    assert first.endswith("4 bad rows or prompts")
    assert [place.split(":")[0] for place in places] == ["line 4", "line 9", "line 11", "item r"]


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="line 2: expected 9 fields, found 2\nline 3: blank item_id"):
        read_questions(write(tmp_path, "p,1\n,,,1,0,e,w,e - w (x),x?\n"), {})
    with pytest.raises(UserError, match="missing: dependency, tuple"):
        read_questions(write(tmp_path, "", [c for c in COLUMNS if c not in ("dependency", "tuple")]), {})
    with pytest.raises(UserError, match="dpg.csv: two columns are called text and tuple$"):
        read_questions(write(tmp_path, "", [*COLUMNS, "text", "tuple"]), {})
    (tmp_path / "empty.csv").touch()
    (tmp_path / "latin.csv").write_bytes(b"\xe9")
    cases = {
        "empty": "empty",
        "latin": "cannot be read: 'utf-8' codec",
        "absent": "published at https://github.com/Ten",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            read_questions(tmp_path / f"{name}.csv", {})


def test_official_rules_read_what_the_script_reads(tmp_path):
    skipped = "x,x,,1,0,entity,whole,entity - whole (x),x?\n"
    content = skipped + rows((1, 0, "a?"), (2, 8, "b?"), (1, 2, "c?"))
    read = read_questions(write(tmp_path, content), {"p": "", "absent": ""}, "official")
    assert [(q.id, q.text, q.parents) for q in read["p"]] == [(1, "c?", (2,)), (2, "b?", (8,))]
    assert read["absent"] == []
    # Rows of a prompt that are not together: only the last of them stay.
    apart = content + skipped + rows((5, 0, "e?"))
    assert [q.text for q in read_questions(write(tmp_path, apart), {"p": ""}, "official")["p"]] == ["e?"]
    with pytest.raises(UserError, match="line 3: blank question"):
        read_questions(write(tmp_path, skipped + rows((1, 0, ""))), {"p": ""}, "official")


def test_read_prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    good = [{"item_id": "1", "text": "a\u2028b"}, {"item_id": "x2", "text": "c"}]
    file.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in good))
    assert read_dpg_prompts(file) == {"1": "a\u2028b", "x2": "c"}
    bad = {
        '{"item_id": "1", "text": "again"}': "line 3: item_id 1 stands there twice",
        '{"item_id": 3, "text": "number"}': "line 3: expected item_id and text",
        '{"item_id": "3", "text": " "}': "line 3: expected item_id and text",
        "[]": "line 3: expected item_id and text",
        "{": "line 3: not JSON",
        '{"item_id": "3", "text": "a", "text": "b"}': "line 3: two keys are called text",
    }
    content = file.read_text()
    for line, message in bad.items():
        file.write_text(content + line + "\n")
        with pytest.raises(UserError, match=message):
            read_dpg_prompts(file)
    file.write_text("")
    with pytest.raises(UserError, match="line 1: not JSON"):
        read_dpg_prompts(file)


def test_prompts_of_the_published_folder_and_table(tmp_path):
    prompts = {"0": "a red circle", "made_up_7": "a blue square, and a cross"}
    (tmp_path / "prompts").mkdir()
    for item, text in prompts.items():
        (tmp_path / "prompts" / f"{item}.txt").write_text(f"\ufeff{text}\n", encoding="utf-8")
    (tmp_path / "prompts" / "README.md").write_text("no prompt")
    table = (
        ",".join(COLUMNS)
        + "\n"
        + "".join(
            f'{item},"{text if number == 1 else ""}",,{number},0,entity,whole,entity - whole (x),Is it?\n'
            for item, text in prompts.items()
            for number in (1, 2)
        )
    )
    (tmp_path / "dpg_bench.csv").write_text(table)
    assert read_dpg_prompts(tmp_path / "prompts") == read_dpg_prompts(tmp_path / "dpg_bench.csv") == prompts
    (tmp_path / "dpg_bench.csv").write_text(table + "0,another,,3,0,entity,whole,entity - whole (x),Is it?\n")
    with pytest.raises(UserError, match="line 6: item 0 has two texts"):
        read_dpg_prompts(tmp_path / "dpg_bench.csv")
    (tmp_path / "dpg_bench.csv").write_text(table + "8,,,1,0,entity,whole,entity - whole (x),Is it?\n")
    with pytest.raises(UserError, match="no text for 8"):
        read_dpg_prompts(tmp_path / "dpg_bench.csv")
    (tmp_path / "prompts" / "9.txt").write_text(" \n")
    with pytest.raises(UserError, match="prompts: no prompt in 9.txt"):
        read_dpg_prompts(tmp_path / "prompts")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no prompts .* published at"):
        read_dpg_prompts(tmp_path / "empty")


@pytest.mark.skipif(not PUBLISHED_PROMPTS.exists(), reason=f"{PUBLISHED_PROMPTS} is missing")
def test_the_published_prompts():
    prompts = read_dpg_prompts(PUBLISHED_PROMPTS)
    assert len(prompts) == 1065
    assert "partiprompts97" in prompts


def test_grid_and_back(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    whole = Image.fromarray(grid(images))
    np.testing.assert_array_equal(split_grid(whole, 8), images)
    # The crops of the official script.
    corners = [(0, 0), (8, 0), (0, 8), (8, 8)]
    for image, (x, y) in zip(split_grid(whole, 8), corners, strict=True):
        np.testing.assert_array_equal(image, np.asarray(whole.crop((x, y, x + 8, y + 8))))
    assert all((a != b).any() for a, b in pairwise(images))
    whole.save(tmp_path / "grid.png")
    np.testing.assert_array_equal(split_grid(Image.open(tmp_path / "grid.png"), 8), images)


def test_grids_of_other_sizes_are_refused(tmp_path):
    file = tmp_path / "grid.png"
    Image.new("RGB", (22, 22)).save(file)  # 2 x 8 and three times two pixels, as torchvision's make_grid pads
    with pytest.raises(UserError, match=r"grid.png: expected 16x16 .* found 22x22: padded by 2 pixels"):
        split_grid(Image.open(file), 8)
    for size in [(8, 8), (16, 8), (17, 17), (32, 32)]:
        with pytest.raises(UserError, match="expected 16x16"):
            split_grid(Image.new("RGB", size), 8)
