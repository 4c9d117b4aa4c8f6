"""Weights & Biases online, against a server on loopback that answers as theirs does, as far as a run asks it."""

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import wandb
from PIL import Image

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.run.folder import Run
from simplear_rl.run.media import media


@pytest.fixture
def server(monkeypatch):
    """Its address is in the environment. `runs` are those that were begun or changed, `files` what was uploaded."""
    runs, files, history = [], [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/graphql":
                history.extend(body.get("files", {}).get("wandb-history.jsonl", {}).get("content", []))
                return self._answer({})
            asked = body.get("variables") or {}
            if body.get("operationName") == "UpsertBucket":
                runs.append(asked)
            project = {"id": "p", "name": asked.get("project"), "entity": {"id": "e", "name": asked.get("entity")}}
            run = {"id": "r", "name": asked.get("name"), "displayName": "", "description": "", "config": "{}"}
            address = f"http://127.0.0.1:{self.server.server_address[1]}"
            uploads = [{"name": name, "uploadUrl": f"{address}/{name}"} for name in asked.get("files", [])]
            data = {
                "upsertBucket": {"bucket": run | {"sweepName": None, "project": project}, "inserted": True},
                "model": {"bucket": None},
                "serverInfo": {"features": []},
                "createRunFiles": {"runID": "r", "uploadHeaders": [], "files": uploads},
            }
            return self._answer({"data": data})

        def do_PUT(self):
            files.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer({})

        def _answer(self, value):
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.runs, server.files, server.history = runs, files, history
    values = {"BASE_URL": f"http://127.0.0.1:{server.server_address[1]}", "API_KEY": "k" * 40, "MODE": "online"}
    values |= {"ENTITY": "us", "PROJECT": "drawing", "RUN_GROUP": "ours", "X_DISABLE_STATS": "true"}
    for name, value in values.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield server
    with suppress(ConnectionError):
        wandb.teardown()
    server.shutdown()
    server.server_close()


def leave_something(folder, step):
    """A sample grid and an evaluation."""
    name = f"step-{step:06d}"
    Image.fromarray(np.full((8, 8, 3), step, np.uint8)).save(folder / "samples" / f"{name}.png")
    (folder / "evaluations" / name).mkdir(parents=True)
    row = {"prompt": "<b>", "correct": True, "reasons": ["no"], "index": 0}
    (folder / "evaluations" / name / "results.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")


def test_a_folder_is_one_run_there_with_pictures_and_tables(server, policy, tmp_path):
    values = [f"root={tmp_path}", f"start={policy}", "steps=4", "checkpoint_every=2", "report_every=null"]
    config = load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", values)
    for until in 3, 99:  # the second one continues after step 2
        with Run("pretrain", config) as run:
            for step in run.steps():
                if step == until:
                    break
                run.log(step, {"loss": 1 / step}, show=("loss",))
                if run.checkpoint_due:
                    run.checkpoint(lambda folder: lambda: (folder / "state").write_text("x"))
                if step in (1, 4):
                    leave_something(config.run, step)
    identity = (config.run / "wandb_run_id").read_text(encoding="utf-8")
    assert {(run["name"], run["project"], run["entity"]) for run in server.runs} == {(identity, "drawing", "us")}
    assert [run["groupName"] for run in server.runs].count("ours") == 2  # one of each start
    rows = [json.loads(row) for row in server.history]
    assert {row["_step"]: row["loss"] for row in rows} == {1: 1, 2: 0.5, 3: 1 / 3, 4: 0.25}
    for step in 1, 4:
        (row,) = [row for row in rows if row["_step"] == step]
        assert row["samples"]["_type"] == "image-file" and row["evaluation"]["_type"] == "html-file"
        assert f"/{row['samples']['path']}" in server.files and f"/{row['evaluation']['path']}" in server.files
    html = media(config.run, 4)["evaluation"].html
    assert "<td>&lt;b&gt;</td>" in html and "<th>reasons</th>" not in html


def test_no_damaged_file_stops_a_run(monkeypatch, policy, tmp_path, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = load_config(
        SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", [f"root={tmp_path}", f"start={policy}", "steps=1"]
    )
    with Run("pretrain", config) as run:
        for step in run.steps():
            run.log(step, {"loss": 1.0}, show=())
            leave_something(config.run, step)
            (config.run / "evaluations" / "step-000001" / "results.jsonl").write_text("{", encoding="utf-8")
    with suppress(ConnectionError):
        wandb.teardown()
    assert "not shown on Weights & Biases" in capsys.readouterr().out
