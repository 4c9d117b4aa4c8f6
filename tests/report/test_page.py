"""The report is one self-contained page with everything in it, whatever a run folder holds."""

import html
import json
import re
import shutil
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
import yaml
from PIL import Image

from simplear_rl.benchmarks.geneval import REWARD_IS_METRIC, TAGS, confidence_intervals, scores
from simplear_rl.errors import UserError
from simplear_rl.report import serve
from simplear_rl.report.evaluations import table
from simplear_rl.report.page import render, write_report
from simplear_rl.report.samples import read_samples, save_samples
from simplear_rl.report.serve import report_server

STAGES = ["pretrain", "sft", "grpo"]
RESULTS = "evaluations/step-000002/results.jsonl"


def make_run(folder, steps=5, config=None, **metrics):
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": i} | {name: of(i) for name, of in metrics.items()}) for i in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump({"steps": steps} | (config or {})), encoding="utf-8")
    return folder


def make_grpo(folder, seed=0, steps=5):
    config = {"rollout": {"refill": 0}, "reward": {"models": [{"type": "clip"}]}, "seed": seed}
    return make_run(
        folder, steps, config, reward=lambda i: i / 7 + seed, samples=lambda i: 8, update_seconds=lambda i: 2
    )


def evaluate(output, right):
    """An evaluation in which of every four prompts of a tag so many are `right`."""
    results = []
    for i, tag in enumerate(tag for tag in TAGS for _ in range(4)):
        (output / f"{i:05d}" / "samples").mkdir(parents=True)
        Image.fromarray(np.full((64, 64, 3), 40 * i % 256, np.uint8)).save(output / f"{i:05d}/samples/00000.png")
        outcome = {"index": i, "tag": tag, "correct": i % 4 < right, "prompt": f"<{tag}> {i}", "reasons": []}
        results.append(outcome | {"filename": f"{i:05d}/samples/00000.png"})
    (output / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in results), encoding="utf-8")
    values = {"images": 24, "scores": scores(results), "confidence_intervals": confidence_intervals(results, 0)}
    (output / "scores.json").write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    for s, stage in enumerate(STAGES):
        if stage == "grpo":
            make_grpo(root / stage)
        else:
            make_run(root / stage, 5, {"data": {"batch_size": 4}}, loss=lambda i: 1 / i)
        evaluate(root / "evaluation" / stage, right=s + 1)
    return root


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_page_of_a_root_holds_scores_curves_and_pictures_and_fetches_nothing(root):
    page = write_report([root]).read_text(encoding="utf-8")
    assert (root / "report.html").exists()
    assert not re.search(r'(src|href)="(?!data:)', page) and "http" not in page.replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert page.count('class="yes"') + page.count('class="no"') == 36
    rows = re.findall(r"<tr><td>(\w+)</td>(.*?)</tr>", page, re.DOTALL)
    values = {name: re.findall(r"(\d\.\d{3}) <small>", cells) for name, cells in rows}
    assert values["overall"] == ["0.250", "0.500", "0.750"]
    assert [run["name"] for run in data_of(page)["runs"]] == STAGES
    assert data_of(page)["runs"][0]["curves"] == {"loss": {"mean": [1, 0.5, 0.3333333, 0.25, 0.2]}}
    assert data_of(page)["runs"][2]["axes"] == {
        "steps": [1, 2, 3, 4, 5],
        "images": [8, 16, 24, 32, 40],
        "seconds": [2, 4, 6, 8, 10],
    }
    parts = [{"phase": "grpo", "seconds": seconds} for seconds in (2.0, 3.0)]
    (root / "timings.jsonl").write_text("".join(json.dumps(part) + "\n" for part in parts), encoding="utf-8")
    assert "<td>grpo</td><td>5 s</td>" in render([root])  # both parts of an interrupted phase
    lines = table(root, STAGES).splitlines()
    assert lines[0].split() == STAGES and lines[-1].split() == ["overall", "0.250", "0.500", "0.750"]


def test_page_warns_when_the_reward_is_the_metric(root):
    assert REWARD_IS_METRIC not in html.unescape(render([root]))
    config = {"rollout": {}, "reward": {"models": [{"type": "clip"}, {"type": "geneval"}]}}
    (root / "grpo" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert REWARD_IS_METRIC in html.unescape(render([root]))


def test_runs_side_by_side_say_what_differs(tmp_path):
    first, other = make_grpo(tmp_path / "a" / "grpo"), make_grpo(tmp_path / "b" / "grpo", seed=1)
    page = render([first, other])
    assert [run["name"] for run in data_of(page)["runs"]] == ["a/grpo", "b/grpo"]
    differing = page.split("what differs")[1].split("</table>")[0]
    assert re.findall(r"<td>(.*?)</td>", differing) == ["seed"]


def test_dpo_on_stored_pairs_has_charts_of_its_own(tmp_path):
    """Its configuration has the key of GRPO's rollouts as well, without a value."""
    config = {"rollout": None, "data": {"batch_size": 4}, "algorithm": {"beta": 0.1, "label_smoothing": 0.0}}
    run = make_run(tmp_path / "dpo", 5, config, loss=lambda i: 1 / i)
    assert [run["kind"] for run in data_of(render([run, make_grpo(tmp_path / "grpo")]))["runs"]] == ["DPO", "GRPO"]


def test_texts_of_a_run_stand_there_as_they_are(tmp_path):
    run = make_grpo(tmp_path / "run")
    bad = "</script><script>alert(1)</script>"
    row = {"step": 2, "time": 1.0, "text": bad}
    (run / "events.jsonl").write_text(json.dumps(row) + "\nno json\n", encoding="utf-8")
    page = render([run])
    assert bad not in page and html.escape(bad) in page
    assert data_of(page)["runs"][0]["events"] == [{"step": 2, "text": bad}]


def test_a_long_run_stays_small_and_whole(tmp_path):
    metrics = {f"metric_{k}": (lambda i, k=k: (i * 7919 % 1009) / 1009 + k) for k in range(40)}
    run = make_run(tmp_path / "run", 2000, {"rollout": {}}, **metrics)
    (run / "samples").mkdir()
    for step in range(50, 2001, 50):
        noise = np.random.default_rng(step).integers(0, 256, (900, 1100, 3), np.uint8)
        Image.fromarray(noise).save(run / "samples" / f"step-{step:06d}.png", compress_level=0)
    page = render([run])
    assert len(page) < 10e6
    assert len(data_of(page)["runs"][0]["curves"]["metric_7"]["mean"]) == 2000
    assert "10 of 40 pictures" in page


def test_samples_are_shown_by_reward(tmp_path):
    run = make_grpo(tmp_path / "run")
    (run / "samples").mkdir()
    images = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * 40 * np.ones((16, 16, 3), np.uint8)
    for step, rewards in (2, [[0, 1, 2], [3, 4, 5], [9, 9, 9]]), (4, [[0, 0.5, np.nan], [7, 0, 0], [8, 8, 8]]):
        save_samples(run / "samples" / f"step-{step:06d}", "abc", np.array(rewards, np.float32), list(images))
    found = read_samples(run / "samples" / "step-000002.json")
    assert found.rewards[2] == [9, 9, 9] and found.prompts == ["a", "b", "c"]
    assert found.with_images() == [(i // 3, i % 3, float(i)) for i in range(6)]
    assert abs(np.asarray(found.image(1, 1)).mean() - 160) < 4
    page = render([run])
    best = page.split("the highest rewards")[1].split("</div>")[0]
    assert re.findall(r"<b>(\S+)</b> (\w) <small>step (\d)", best)[:2] == [("7", "b", "4"), ("5", "b", "2")]
    assert sum(data_of(page)["histograms"][0]["counts"]["step 4"]) == 8
    gained = page.split("<h3>gained</h3>")[1].split("<h3>")[0]
    assert re.findall(r"<b>(\S+ → \S+)</b> (\w)", gained) == []  # of a one sample is left out, b and c fell
    (run / "samples" / "step-000004.webp").write_bytes(b"RIFF")
    assert html.unescape(render([run])).count("step-000004.webp: cannot be read") == 1


def test_prompts_that_gained_and_lost_are_found(tmp_path):
    run = make_grpo(tmp_path / "run")
    evaluate(run / "evaluations" / "step-000002", right=1)
    evaluate(run / "evaluations" / "step-000004", right=2)
    page = html.unescape(render([run]))
    gained, lost = page.split("<h3>gained</h3>")[1].split("<h3>lost</h3>")
    assert re.findall(r"<b>(\S+ → \S+)</b> <\w+> (\d+)", gained) == [("0 → 1", f"{i}") for i in (1, 5, 9, 13, 17)]
    assert "none" in lost.split("</h3>")[0][:20]
    shutil.rmtree(run / "evaluations" / "step-000004" / "00001")  # images need not be kept
    (run / "evaluations" / "step-000002" / "scores.json").write_text("{", encoding="utf-8")
    assert "step-000002: cannot be read" in render([run])


def test_foreign_and_broken_folders_get_one_message(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as raised:
        render([make_grpo(tmp_path / "run"), tmp_path / "empty", tmp_path / "gone", tmp_path / "file"])
    lines = str(raised.value).splitlines()
    assert [re.search(r"\((.*?)\)", line)[1] for line in lines] == [
        "no metrics.jsonl there",
        "no such folder",
        "a file",
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n[1]\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: expected the metrics of a step"):
        render([tmp_path / "run"])


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("config.yaml", "steps: abc", "config.yaml: steps: expected a number, found 'abc'"),
        ("config.yaml", "data: {batch_size: a}", "config.yaml: data.batch_size: expected a number, found 'a'"),
        ("config.yaml", "{algorithm: 5, reward: {models: 5}}", None),
        ("metrics.jsonl", '{"step": 1, "step_seconds": null}', "step_seconds of step 1: expected a number, found None"),
        ("metrics.jsonl", '{"step": 1, "step_seconds": "x"}', "step_seconds of step 1: expected a number, found 'x'"),
        ("metrics.jsonl", '{"step": 1, "a_seconds": NaN}', "a_seconds of step 1: expected a number, found nan"),
        ("metrics.jsonl", '{"step": 1, "samples": "x"}', "samples of step 1: expected a number, found 'x'"),
        ("metrics.jsonl", f'{{"step": 1, "loss": {10**400}}}', "loss of step 1: expected a number, found 1000"),
        ("metrics.jsonl", '{"step": 1e400}', "step of step inf: expected a number, found inf"),
        ("metrics.jsonl", '{"step": 1, "loss": NaN}', None),
        ("events.jsonl", '{"step": 1e400, "time": 1, "text": "x"}', None),
        (RESULTS, '{"prompt": "<counting> 0", "filename": "x", "score": "bad"}', "'bad'"),
        (RESULTS, '{"prompt": [1], "filename": "x"}', "step-000002: cannot be read"),
        (RESULTS, '["prompt", "filename"]', "step-000002: cannot be read"),
        ("samples/step-000002.json", '{"prompts": ["a"], "rewards": [[1]], "shown": 1e400}', "000002.json: cannot"),
    ],
)
def test_damage_is_named_on_the_page(tmp_path, file, content, problem):
    run = make_grpo(tmp_path / "run")
    for step in "step-000002", "step-000004":
        evaluate(run / "evaluations" / step, right=1)
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).write_text(content + "\n", encoding="utf-8")
    page = html.unescape(render([run]))
    assert problem is None or problem in page
    assert ("1 files could not be read" in page) == (problem is not None)


@pytest.mark.parametrize("left", ["", '{"step": 1}\n'])
def test_a_run_that_has_hardly_begun_has_a_page(tmp_path, left):
    run = make_run(tmp_path / "run", 1)
    (run / "metrics.jsonl").write_text(left, encoding="utf-8")
    (run / "config.yaml").unlink()
    assert "<h1>run</h1>" in render([run])


def test_server_shows_the_page_as_it_is_now_and_to_this_machine_alone(tmp_path, monkeypatch):
    run = make_grpo(tmp_path / "run")
    with report_server([run], 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.server_address
        assert host == "127.0.0.1"

        def get(path="/", **headers):
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
            with urllib.request.urlopen(request) as answer:
                return answer.read().decode()

        assert "5 of 5" in get()
        with (run / "metrics.jsonl").open("a", encoding="utf-8") as rows:
            rows.write('{"step": 6}\n')
        assert "6 of 5" in get()
        for asked, status in (lambda: get("/../etc"), 404), (lambda: get(Host="evil.example:80"), 403):
            with pytest.raises(urllib.error.HTTPError) as raised:
                asked()
            assert raised.value.code == status
        with pytest.raises(UserError, match="this port cannot be had"):
            report_server([run], port)
        with monkeypatch.context() as patch, pytest.raises(urllib.error.HTTPError) as raised:
            patch.setattr(serve, "render", lambda folders: 1 / 0)
            get()
        assert (raised.value.code, raised.value.read()) == (500, b"ZeroDivisionError: division by zero")
        server.shutdown()
