"""The report while a run trains: it follows the run, and no fault of it ends one."""

import json
import re

import pytest

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.report import live
from simplear_rl.report.live import reporting
from simplear_rl.report.page import render
from simplear_rl.run.events import note, read_events, say
from simplear_rl.run.folder import Run
from simplear_rl.run.lock import FolderLock


@pytest.fixture
def config(policy, tmp_path):
    values = [f"root={tmp_path}", f"start={policy}", "steps=6", "checkpoint_every=3", "wandb=false", "report_every=2"]
    return load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", values)


def train(config, until=99):
    """Steps that are reported; what there is of the report after each."""
    run, seen = Run("pretrain", config), []
    with reporting(run), run:
        for step in run.steps():
            run.log(step, {"loss": 1 / step}, show=("loss",))
            if run.checkpoint_due:
                run.checkpoint(lambda folder: lambda: (folder / "state").write_text("x"))
            if step == until:
                raise KeyboardInterrupt
            seen.append((config.run / "report.html").exists())
    return seen


def steps_of(page):
    return re.search(r"<td>(\d+) of 6</td>", page)[1]


def test_the_page_of_a_killed_and_resumed_run_shows_where_it_began_again(config):
    with pytest.raises(KeyboardInterrupt):
        train(config, until=5)
    report = config.run / "report.html"
    assert steps_of(report.read_text(encoding="utf-8")) == "5"
    with FolderLock(config.run, "run"):  # as during its training
        assert ">stopped<" in report.read_text(encoding="utf-8")
        assert ">running<" in render([config.run])
    assert ">stopped<" in render([config.run])
    assert train(config)
    page = report.read_text(encoding="utf-8")
    assert steps_of(page) == "6" and ">finished<" in page
    texts = [(event["step"], event["text"]) for event in read_events(config.run)]
    assert texts == [(0, "started"), (3, "continued after step 3; steps 4 to 5 are done again")]
    for _, text in texts:
        assert f'<td class="text">{text}</td>' in page
    (data,) = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["runs"]
    assert data["axes"]["steps"] == [1, 2, 3, 4, 5, 6] and len(data["events"]) == 2


def test_a_fault_of_the_report_ends_no_run(config, monkeypatch, capsys):
    monkeypatch.setattr(live, "write_report", lambda folders, ended: 1 / 0)
    assert train(config) == [False] * 6
    assert "no report: ZeroDivisionError: division by zero" in capsys.readouterr().out


def test_no_report_where_none_is_asked_for(config):
    assert train(config.model_copy(update={"report_every": None})) == [False] * 6


def test_what_is_said_is_kept_while_a_run_is_under_way(config, capsys):
    say("nobody keeps this")
    run = Run("pretrain", config)
    with run:
        say("nor this: there is no folder yet")
        for step in run.steps():
            run.log(step, {"loss": 0.0}, show=())
            note(f"after {step}")
            if step == 2:
                break
    assert [event["text"] for event in read_events(config.run)] == ["started", "after 1", "after 2"]
    assert "nobody keeps this\nnor this" in capsys.readouterr().out
    with (config.run / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 9')
    assert len(read_events(config.run)) == 3
