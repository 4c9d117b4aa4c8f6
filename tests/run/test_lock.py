"""One process at a time in a folder: live ones keep others out, dead ones do not."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from threading import Event, Thread

import pytest

from simplear_rl import evaluate, pretrain
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import DemoConfig, SupervisedConfig
from simplear_rl.demo import demo
from simplear_rl.errors import UserError
from simplear_rl.run import lock as module
from simplear_rl.run.lock import LOCK, FolderLock

HOLDER = """
import sys
from pathlib import Path
from simplear_rl.run.lock import FolderLock
with FolderLock(Path(sys.argv[1]), "run"):
    print("held", flush=True)
    sys.stdin.read()
"""
CONTENDER = """
import sys
from pathlib import Path
from simplear_rl.errors import UserError
from simplear_rl.run.lock import FolderLock
sys.stdin.readline()
try:
    with FolderLock(Path(sys.argv[1]), "run"):
        print("held", flush=True)
        sys.stdin.readline()
except UserError as error:
    print("refused", error, flush=True)
"""


def start(program, folder):
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of the folder `run`."""
    process = start(HOLDER, tmp_path / "run")
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def held(folder):
    with FolderLock(folder, "run"):
        return json.loads((folder / LOCK).read_text())["process"] == os.getpid()


def test_a_second_process_is_refused_with_host_and_process_of_the_first(tmp_path, holder):
    with pytest.raises(UserError, match=f"run: process {holder.pid} on {socket.gethostname()} works there; .*`run`"):
        held(tmp_path / "run")
    holder.communicate()  # ends as programs do
    assert holder.returncode == 0
    assert not (tmp_path / "run").exists()  # nothing was done there
    assert held(tmp_path / "run")


def test_a_killed_process_is_no_obstacle_even_before_its_parent_has_looked(tmp_path, holder):
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
    assert held(tmp_path / "run")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.02)
    monkeypatch.setattr(module, "DEAD", 1.0)


def leave(folder, **about):
    """The lock of a process that lives here, with other values."""
    folder.mkdir(exist_ok=True)
    with FolderLock(folder, "run"):
        left = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps(left | about) + "\n")


def test_a_process_number_that_another_process_got_is_no_obstacle(tmp_path):
    leave(tmp_path, started="1")
    assert held(tmp_path)


def test_a_copied_folder_is_free_while_the_first_one_is_not(tmp_path, holder):
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert held(tmp_path / "copy")


@pytest.mark.parametrize("machine", ["that of another node", "", None])
def test_silence_of_another_machine_is_waited_for_and_then_no_obstacle(tmp_path, impatient, capsys, machine):
    leave(tmp_path, machine=machine, host="node7", process=11)
    assert held(tmp_path)
    assert "lock.json: of process 11 on node7; waiting for a sign of life" in capsys.readouterr().out


def test_silence_that_is_old_enough_is_not_waited_for(tmp_path, capsys):
    leave(tmp_path, machine="that of another node")
    os.utime(tmp_path / LOCK, (1e9, 1e9))
    assert held(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b'{"host": "no', bytes(100), b"[1]\n"])
def test_a_lock_that_a_crash_has_damaged_is_no_obstacle(tmp_path, impatient, content):
    (tmp_path / LOCK).write_bytes(content)
    assert held(tmp_path)


def test_a_heartbeat_on_another_machine_is_an_obstacle(tmp_path, impatient, monkeypatch):
    ended = Event()
    with monkeypatch.context() as other:
        other.setattr(module, "_machine", lambda: "that of another node")
        other.setattr(socket, "gethostname", lambda: "node7")
        lock = FolderLock(tmp_path, "output")
    thread = Thread(target=lambda: lock.__enter__() and ended.wait() and lock.__exit__())
    thread.start()
    while not (tmp_path / LOCK).exists():
        pass
    with pytest.raises(UserError, match=f"process {os.getpid()} on node7 works there"):
        held(tmp_path)
    ended.set()
    thread.join()
    assert held(tmp_path)


def test_a_process_that_was_taken_for_dead_ends_as_soon_as_it_wakes(tmp_path, capfd):
    process = start(f"from simplear_rl.run import lock\nlock.BEAT = 0.02\n{HOLDER}", tmp_path)
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    other = json.loads((tmp_path / LOCK).read_text()) | {"host": "node7", "process": 11, "token": "other"}
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).write_text(json.dumps(other) + "\n")
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=60) == 1
    assert f"{tmp_path}: process 11 on node7 works there since this process" in capfd.readouterr().err
    assert json.loads((tmp_path / LOCK).read_text()) == other


@pytest.mark.parametrize("content", [None, ""])
def test_a_lock_that_is_nobody_s_yet_ends_no_process(tmp_path, impatient, content):
    """As between two steps of one that takes it over."""
    with FolderLock(tmp_path, "run") as lock:
        (tmp_path / LOCK).unlink()
        if content is not None:
            (tmp_path / LOCK).write_text(content)
        lock._end_if_lost()


def test_of_many_that_find_the_lock_of_a_dead_process_one_gets_it(tmp_path):
    leave(tmp_path, started="1")
    processes = [start(CONTENDER, tmp_path) for _ in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    # Who comes between the lock's creation and its first words waits for them, and says so before.
    found = [next(line for line in process.stdout if not line.startswith(str(tmp_path))) for process in processes]
    for process in processes:
        process.communicate()
    assert Counter(line.split()[0] for line in found) == {"held": 1, "refused": 3}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_left_to_whoever_writes_there(tmp_path):
    (tmp_path / "file").write_text("")
    with FolderLock(tmp_path / "file" / "run", "run"):
        pass
    assert (tmp_path / "file").read_text() == ""


def stages(folder):
    root = f"root={folder}"
    shapes = CONFIGS / "shapes"
    return {
        "run": (pretrain.train, load_config(SupervisedConfig, shapes / "pretrain.yaml", [root, f"run={folder}/run"])),
        "output": (
            evaluate.evaluate,
            load_config(EvaluateConfig, shapes / "evaluate.yaml", [root, f"output={folder}/run"]),
        ),
        "root": (demo, DemoConfig(root=folder / "run", fresh=True)),
    }


@pytest.mark.parametrize("key", ["run", "output", "root"])
def test_commands_keep_out_of_a_folder_where_another_one_works(tmp_path, holder, key):
    command, config = stages(tmp_path)[key]
    (tmp_path / "run" / "kept").write_text("")
    with pytest.raises(UserError, match=f"process {holder.pid} .* or choose another `{key}`"):
        command(config)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["kept", LOCK]
