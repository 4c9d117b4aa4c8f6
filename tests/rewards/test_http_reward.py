"""Rewards that servers give: real ones, that die, hang and answer nonsense."""

import base64
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from simplear_rl.config.rewards import HttpRewardConfig
from simplear_rl.errors import UserError
from simplear_rl.rewards.http import HttpReward
from simplear_rl.rewards.reward import UnscoredError

REPOSITORY = Path(__file__).parents[2]


class Server(ThreadingHTTPServer):
    """Answers with the mean redness, after the faults of a list: each is the answer to one request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.bodies, self.headers = [], [], []
        self.address = f"http://127.0.0.1:{self.server_address[1]}/score"
        Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.headers.append(self.headers)
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == "hang":
            time.sleep(3)
        if fault == "cut":
            self.connection.close()
            return
        status, text = fault if isinstance(fault, tuple) else (200, fault)
        answer = text or json.dumps({"scores": [redness(picture) for picture in body["images"]]})
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


def redness(picture: str) -> float:
    return float(np.asarray(Image.open(BytesIO(base64.b64decode(picture))))[..., 0].mean())


@pytest.fixture
def server():
    with Server() as running:
        yield running
        running.shutdown()


def reward(*servers: Server, **more) -> HttpReward:
    more = {"timeout_seconds": 1, "backoff_seconds": 0.01} | more
    return HttpReward(HttpRewardConfig(addresses=[s.address for s in servers], **more))


def images(number: int) -> np.ndarray:
    """Of redness 0, 1, ..."""
    return np.broadcast_to(np.arange(number, dtype=np.uint8)[:, None, None, None], (number, 8, 8, 3))


def closed() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/score"


def test_images_prompts_and_columns_go_there_and_scores_come_back_in_batches(server, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "secret")
    asking = reward(server, batch_size=2, token_variable="MY_TOKEN")
    texts, columns = (
        ["a", "b", "c"],
        [{"answer": 1, "tag": None}, {"answer": [2], "tag": "x"}, {"answer": 3, "tag": ""}],
    )
    assert asking.score(images(3), texts, columns).tolist() == [0, 1, 2]
    first, second = server.bodies
    assert (first["prompts"], second["prompts"]) == (["a", "b"], ["c"])
    assert first["columns"] == {"answer": [1, [2]], "tag": [None, "x"]}
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer secret"] * 2
    assert base64.b64decode(first["images"][0]).startswith(b"\x89PNG")
    assert reward(server, image_format="jpeg").score(images(3), texts).tolist() == [0, 1, 2]
    assert base64.b64decode(server.bodies[-1]["images"][0]).startswith(b"\xff\xd8")


def test_several_rewards_and_images_that_cannot_be_scored(server):
    server.faults = ['{"scores": {"a": [1, 2], "b": [3, null]}}', '{"scores": {"a": [5], "b": [6]}}']
    scores = reward(server, batch_size=2).score(images(3), ["a"] * 3)
    assert scores["a"].tolist() == [1, 2, 5]
    assert np.isnan(scores["b"]).tolist() == [False, True, False]
    server.faults = ['{"error": "no face"}']
    with pytest.raises(UnscoredError, match=rf"reward http: {server.address}: no face"):
        reward(server).score(images(1), ["a"])


FAULTS = {
    (503, "busy"): "answered 503: busy",
    (429, "slow down"): "answered 429: slow down",
    (500, '{"scores": [0, 0]}'): "answered 500:",
    "hang": "Read timed out",
    "cut": "Connection aborted|Remote end closed|Connection broken",
    "<html>": "answered b'<html>', expected JSON",
    "[1, 2]": 'answered b.* expected {"scores": ...}',
    '{"scores": [1]}': "expected 2 numbers, one for each image, found 1",
    '{"scores": [1, "2"]}': "expected a number for image 1, found str '2'",
    '{"scores": 7}': "expected a list or array of 2 numbers, found int 7",
    '{"scores": {"a": [1, 2]}}': "expected one reward, found a",
}


def test_what_fails_is_asked_again_and_named(server, caplog):
    server.faults = list(FAULTS)
    asking = reward(server, retries=len(FAULTS))
    asking.names = []  # it has answered before, with one reward
    with caplog.at_level(logging.WARNING):
        assert asking.score(images(2), ["a"] * 2).tolist() == [0, 1]
    said = [record.getMessage() for record in caplog.records if record.name == "simplear_rl.rewards.http"]
    for line, expected in zip(said, FAULTS.values(), strict=True):
        assert line.startswith(f"reward http: {server.address}: ")
        assert re.search(expected, line)


def test_another_server_helps_out(server, caplog):
    gone = closed()
    asking = HttpReward(HttpRewardConfig(addresses=[gone, server.address], backoff_seconds=0.01))
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            assert asking.score(images(2), ["a"] * 2).tolist() == [0, 1]
    assert sum(gone in record.getMessage() and "refused" in record.getMessage() for record in caplog.records) == 2


def test_what_stays_broken_ends_the_run_with_all_addresses(server):
    gone = closed()
    server.faults = ['{"scores": [1]}'] * 10
    asking = HttpReward(HttpRewardConfig(addresses=[gone, server.address], retries=3, backoff_seconds=0.01))
    with pytest.raises(UserError) as error:
        asking.score(images(2), ["a"] * 2)
    assert f"reward http: no scores from {gone}" in str(error.value) or f", {gone} after 3 retries" in str(error.value)
    assert "after 3 retries; at last " in str(error.value)


def test_requests_that_are_wrong_are_not_repeated(server, monkeypatch):
    server.faults = [(422, '{"detail": "asks for answer"}')]
    with pytest.raises(UserError, match='answered 422: {"detail": "asks for answer"}'):
        reward(server).score(images(1), ["a"])
    assert len(server.bodies) == 1
    with pytest.raises(UserError, match="a column of the prompts file cannot be sent as JSON: Object of type bytes"):
        reward(server).score(images(1), ["a"], [{"x": b"1"}])
    monkeypatch.delenv("NO_TOKEN", raising=False)
    with pytest.raises(UserError, match="reward http: the environment variable NO_TOKEN is not set"):
        reward(server, token_variable="NO_TOKEN")


def test_every_server_is_tried_on_black_images(server):
    with Server() as other:
        assert reward(server, other).check(["a"], [{"answer": 1}]) == []
        assert [len(s.bodies) for s in (server, other)] == [1, 1]
        assert server.bodies[0]["columns"] == {"answer": [1, 1]}
        other.faults = ['{"scores": [null, 1]}'] * 2
        with pytest.raises(UserError, match=f"{other.address}: of two black images the score of image 0 is nan"):
            reward(server, other).check(["a"])
        assert reward(server, other, on_error="skip_group").check(["a"]) == []
        other.shutdown()
    with pytest.raises(UserError, match=f"no scores from {other.address} after 1 retries; at last .*refused"):
        reward(server, other, retries=1).check(["a"])


class ExampleServer:
    """examples/reward_server.py in a process of its own, which can be killed and started again."""

    def __init__(self, function: str, token: str = ""):
        self.function, self.token = function, token
        self.address = closed()

    def start(self) -> None:
        port = self.address.split(":")[2].split("/")[0]
        command = [sys.executable, REPOSITORY / "examples" / "reward_server.py", self.function, "--port", port]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "REWARD_TOKEN": self.token}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


CODE = """\
def scored(images, prompts, answer):
    if prompts[0] == "fails":
        raise ValueError("no face")
    if prompts[0] == "too few":
        return [1]
    return {"red": red(images), "answer": [float(a) if a else None for a in answer]}

def red(images):
    return images[..., 0].mean((1, 2))
"""


@pytest.fixture
def example(tmp_path):
    (tmp_path / "my_reward.py").write_text(CODE)
    running = []

    def start(function: str) -> ExampleServer:
        running.append(ExampleServer(f"{tmp_path}/my_reward.py:{function}", token="secret"))
        running[0].start()
        return running[0]

    yield start
    running[0].kill()


def test_the_example_serves_a_function_of_the_users(example, monkeypatch):
    monkeypatch.setenv("TOKEN", "secret")
    config = HttpRewardConfig(
        addresses=[example("scored").address], token_variable="TOKEN", retries=30
    )  # until it is up
    asking = HttpReward(config)
    scores = asking.score(images(2), ["a"] * 2, [{"answer": "3"}, {"answer": None}])
    assert scores["red"].tolist() == [0, 1]
    assert (scores["answer"][0], np.isnan(scores["answer"][1])) == (3, True)
    with pytest.raises(UnscoredError, match=r"ValueError: no face \(my_reward.py, line 3\)"):
        asking.score(images(1), ["fails"], [{"answer": 1}])
    with pytest.raises(UserError, match="answered 422: .*expected 2 numbers, one for each image, found 1"):
        asking.score(images(2), ["too few"] * 2, [{"answer": 1}] * 2)
    monkeypatch.setenv("TOKEN", "wrong")
    with pytest.raises(UserError, match="answered 401: .*the bearer token is missing or wrong"):
        HttpReward(config).score(images(1), ["a"], [{"answer": 1}])


@pytest.mark.slow
def test_nothing_is_lost_while_servers_die_hang_and_answer_nonsense(server, example, monkeypatch, caplog):
    """200 batches: one server is killed and restarted twice, the other has every fault in turn."""
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setattr("simplear_rl.rewards.http.LONGEST_WAIT", 0.2)  # else the waits are a quarter of an hour
    server.faults = [fault for fault in FAULTS for _ in range(4)]
    mortal = example("red")
    addresses = [mortal.address, server.address]
    settings = {"token_variable": "TOKEN", "timeout_seconds": 2, "retries": 40, "backoff_seconds": 0.05}
    asking = HttpReward(HttpRewardConfig(addresses=addresses, **settings))
    with caplog.at_level(logging.WARNING):
        for batch in range(200):
            if batch in (50, 120):
                mortal.kill()
            if batch in (70, 140):
                mortal.start()
            red = np.random.default_rng(batch).integers(1, 256, 2).astype(np.uint8)
            pictures = np.broadcast_to(red[:, None, None, None], (2, 8, 8, 3))
            assert asking.score(pictures, ["a"] * 2).tolist() == red.tolist()
    said = "\n".join(record.getMessage() for record in caplog.records)
    for expected in [*FAULTS.values(), f"{mortal.address}: .*refused"]:
        assert re.search(expected, said)
