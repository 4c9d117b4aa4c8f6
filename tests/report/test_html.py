"""The report is one self-contained page with everything in it."""

import html
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from simplear_rl.benchmarks.geneval import REWARD_IS_METRIC, TAGS, confidence_intervals, scores
from simplear_rl.report.html import CURVES, summary, write_report

STAGES = ["pretrain", "sft", "grpo"]


@pytest.fixture
def root(tmp_path):
    for s, stage in enumerate(STAGES):
        (tmp_path / stage).mkdir()
        rows = [{"step": i} | dict.fromkeys(CURVES[stage], 1 / i) for i in range(1, 6)]
        for row in rows[:3]:
            row.pop("evaluation_overall", None)  # logged now and then
        (tmp_path / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / stage / "config.yaml").write_text("reward: {models: [{type: clip}]}\n")
        output = tmp_path / "evaluation" / stage
        results = []
        for i, tag in enumerate(tag for tag in TAGS for _ in range(4)):
            (output / f"{i:05d}" / "samples").mkdir(parents=True)
            Image.fromarray(np.full((64, 64, 3), 40 * i % 256, np.uint8)).save(output / f"{i:05d}/samples/00000.png")
            outcome = {"index": i, "tag": tag, "correct": i % 4 <= s, "prompt": f"<{tag}> {i}", "reasons": []}
            results.append(outcome | {"filename": f"{i:05d}/samples/00000.png"})
        (output / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in results))
        values = {"images": 24, "scores": scores(results), "confidence_intervals": confidence_intervals(results, 0)}
        (output / "scores.json").write_text(json.dumps(values))
    (tmp_path / "timings.jsonl").write_text('{"phase": "grpo", "seconds": 2.0}\n{"phase": "grpo", "seconds": 3.0}\n')
    for copy, of in {**{f"{stage}-guided": "grpo" for stage in STAGES}, "grpo-step-000050": "sft"}.items():
        shutil.copytree(tmp_path / "evaluation" / of, tmp_path / "evaluation" / copy)
    return tmp_path


def test_page_holds_tables_curves_samples_and_times(root):
    page = write_report(root, STAGES, 2.5).read_text()
    assert not re.search(r'(src|href)="(?!data:)', page), "something is fetched from elsewhere"
    assert page.count("<img") == 3 + len(STAGES)
    cells = re.findall(r"<td>(\d\.\d{3})", page)
    assert cells[:6] == ["0.250", "0.750", "0.500", "0.750", "0.750", "0.750"]
    assert "<td>grpo</td><td>5</td>" in page  # both parts of an interrupted phase


def test_page_warns_when_the_reward_is_the_metric(root):
    page = write_report(root, STAGES, 2.5).read_text()
    assert "the reward never sees it" in page and REWARD_IS_METRIC not in page
    (root / "grpo" / "config.yaml").write_text("reward: {models: [{type: clip}, {type: geneval}]}\n")
    page = html.unescape(write_report(root, STAGES, 2.5).read_text())
    assert "the reward never sees it" not in page and REWARD_IS_METRIC in page


def test_summary_is_a_table_of_tags_and_stages(root):
    lines = summary(root, STAGES).splitlines()
    assert lines[0].split() == [name for stage in STAGES for name in (stage, f"{stage}-guided")]
    assert lines[-1].split() == ["overall", "0.250", "0.750", "0.500", "0.750", "0.750", "0.750"]
