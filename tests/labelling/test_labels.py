"""Labels of pairs: nothing is lost or doubled, whoever labels, and the server answers this machine alone."""

import errno
import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import numpy as np
import pytest

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.label import LabelConfig
from simplear_rl.config.load import load_config
from simplear_rl.data.columns import Columns
from simplear_rl.data.images import to_square
from simplear_rl.data.listing import find_files
from simplear_rl.data.sources import divide, read_batches
from simplear_rl.errors import UserError
from simplear_rl.label import drawn_pairs
from simplear_rl.labelling.labels import ImagePair, Labels
from simplear_rl.labelling.server import label_server
from simplear_rl.policy.rollouts import Prompt
from simplear_rl.report.image_files import ImageFiles
from tests.pictures import picture

PROMPTS = 4


@pytest.fixture
def folder(tmp_path):
    """A folder with four pairs of images, as `generate` writes them."""
    values = ["images_per_prompt=2", "prompts=x", f"output={tmp_path / 'images'}"]
    files = ImageFiles(load_config(LabelConfig, CONFIGS / "shapes" / "label.yaml", values))
    files.make_folder()
    for number in range(PROMPTS):
        images = np.stack([np.asarray(picture(2 * number + side, 32, 32)) for side in (0, 1)])
        files.write(Prompt(number, f"prompt {number}"), images)
    return tmp_path


def rows(folder):
    return [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]


def test_a_session_keeps_its_pair_and_others_get_another(folder):
    labels = Labels(folder, drawn_pairs(folder))
    first = labels.next("a")
    assert first == {"done": 0, "total": 4, "undo": False, "pair": 0, "prompt": "prompt 0"}
    assert labels.next("a") == first  # loaded again
    assert labels.next("b")["pair"] == 1
    assert labels.label("a", 0, "left") and not labels.label("b", 0, "right")
    assert labels.next("a")["pair"] == 2 and labels.next("c")["pair"] == 3
    assert labels.next("d")["pair"] in (1, 2, 3)  # all are at hand: whoever answers first
    assert len(rows(folder)) == 1


def test_labels_survive_the_process_and_are_taken_back(folder):
    labels = Labels(folder, drawn_pairs(folder))
    for session, number, choice in ("a", 0, "left"), ("b", 1, "tie"), ("a", 2, "right"):
        assert labels.label(session, number, choice)
    labels = Labels(folder, drawn_pairs(folder))
    assert labels.next("a")["done"] == 3 and labels.next("a")["pair"] == 3
    assert labels.undo("a") and labels.next("a")["pair"] == 2
    assert [(row["pair"], row["label_0"], row["label_1"]) for row in rows(folder)] == [(0, 1.0, 0.0), (1, 0.5, 0.5)]
    assert labels.undo("a") and not labels.undo("a") and labels.undo("b")
    assert labels.label("a", 0, "right") and len(rows(folder)) == 1
    with (folder / "labels.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "pro')
    assert Labels(folder, drawn_pairs(folder)).next("a")["done"] == 1


def test_a_label_that_cannot_be_written_is_asked_for_again(folder, monkeypatch):
    labels = Labels(folder, drawn_pairs(folder))
    labels.label("a", 0, "left")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match=r"labels\.jsonl: cannot be written: No space left on device"):
            labels.label("a", 1, "left")
    assert labels.next("a")["pair"] == 1 and len(rows(folder)) == 1
    assert labels.label("a", 1, "right")
    assert [(row["pair"], row["label_0"]) for row in rows(folder)] == [(0, 1.0), (1, 0.0)]
    assert Labels(folder, drawn_pairs(folder)).next("a")["done"] == 2


def test_labels_of_other_pairs_are_refused(folder):
    pairs = drawn_pairs(folder)
    Labels(folder, pairs).label("a", 0, "left")
    with pytest.raises(UserError, match=r"labels\.jsonl, line 1: not a label of these pairs"):
        Labels(folder, [ImagePair("another", pairs[0].left, pairs[0].right), *pairs[1:]])


def test_labels_are_what_tokenize_reads(folder):
    labels = Labels(folder, drawn_pairs(folder))
    for number, choice in enumerate(("left", "right", "tie")):
        labels.label("a", number, choice)
    columns = Columns(pairs="drop_ties")
    parts = divide(find_files(folder, "**/*", columns=columns), 10, columns)
    found = [row for part in parts for row in read_batches(part, 32, 8, columns)]
    assert [entry["reason"] for row in found for entry in json.loads(row["rejected"])] == ["a tie"]
    better = [labels.image(0, "left"), labels.image(1, "right")]
    images = [images[0].tolist() for row in found for images in row["images"]]
    assert images == [to_square(file.read_bytes(), 32).tolist() for file in better]


@pytest.fixture
def ask(folder):
    """A function of method, path, body and headers; returns status and body."""
    server = label_server(Labels(folder, drawn_pairs(folder)), 0)
    Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]

    def ask(method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), kind | headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    yield ask
    server.shutdown()
    server.server_close()


def test_the_page_and_its_images(ask, folder):
    assert ask("GET", "/")[1].startswith(b"<!doctype html>")
    status, body = ask("GET", "/image/3/right")
    assert status == 200 and body == Labels(folder, drawn_pairs(folder)).image(3, "right").read_bytes()
    for path in "/image/4/left", "/image/-1/left", "/image/../left", "/labels.jsonl", "/next", "/image/0/up":
        assert ask("GET", path)[0] == 404, path
    assert ask("GET", "/", Host="example.org")[0] == 403
    assert ask("POST", "/label", {"session": "a", "pair": 0, "choice": "left"}, Host="example.org")[0] == 403


def test_requests_that_make_no_sense_write_nothing(ask, folder):
    good = {"session": "a", "pair": 0, "choice": "left"}
    bad = [{"pair": 9}, {"pair": "x"}, {"choice": "up"}, {"session": ""}, {"session": 3}, {"session": "a" * 2000}]
    for body in [good | part for part in bad] + [[], "x", {}]:
        assert ask("POST", "/label", body)[0] == 400, body
    assert ask("POST", "/label", good, **{"Content-Type": "text/plain"})[0] == 400
    assert ask("POST", "/undo", {"session": "a"})[0] == 409
    assert not (folder / "labels.jsonl").exists()


def test_many_at_a_time_label_every_pair_once(ask, folder):
    def labelled(session):
        done = 0
        while "pair" in (at_hand := json.loads(ask("GET", f"/next?{session}")[1])):
            body = {"session": session, "pair": at_hand["pair"], "choice": "tie"}
            done += ask("POST", "/label", body)[0] == 200
        return done

    with ThreadPoolExecutor(8) as people:
        assert sum(people.map(labelled, "abcdefgh")) == PROMPTS
    assert sorted(row["pair"] for row in rows(folder)) == list(range(PROMPTS))
