"""slurm.sh, really run, with stand-ins for Slurm and Ray on PATH that note what is started in which order."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "slurm.sh"

# Like the real one it kills what it started, with SIGKILL, when it gets SIGTERM itself.
SRUN = """#!/usr/bin/env bash
where=() NODES=1
while [[ $1 == --* ]]; do
    case $1 in
        --nodes=*) export NODES=${1#*=} where+=("$1") ;;
        --nodelist=* | --exclude=*) where+=("$1") ;;
        --ntasks=*) [[ ${1#*=} == "$NODES" ]] || exit 64 ;;
    esac
    shift
done
echo "srun ${where[*]} $*" >>"$LOG"
"$@" &
trap 'kill -KILL %1; wait; exit 143' TERM
wait %1
"""
SCONTROL = """#!/usr/bin/env bash
[[ $* == "show hostnames gpu[1-4]" ]] && printf 'gpu1\\ngpu2\\ngpu3\\ngpu4\\n' || echo "${@: -1}"
"""
GETENT = """#!/usr/bin/env bash
echo "10.0.0.1       STREAM $2"
"""
# Each `ray start` adds its nodes to a file, which `ray list nodes` reads; they run until a `ray stop`.
RAY = """#!/usr/bin/env bash
case "$1 $2" in
    "--version "*) echo "ray, version ${RAY_INSTALLED:-VERSION}" ;;
    "start "*)
        env | grep -E '^RAY_(AUTH_MODE|AUTH_TOKEN_PATH|ACCEL)' | sort >"$LOG.env"
        [[ $* == *--head* && ${HEAD_DIES-} ]] && exit 1
        sleep 0.2
        for ((i = 0; i < NODES && (i == 0 || ! ${MISSING:-0}); i++)); do echo node >>"$LOG.alive"; done
        until [[ -e $LOG.stopped && ! ${STUCK-} ]]; do sleep 0.1; done
        ;;
    "health-check "*) [[ -s $LOG.alive ]] ;;
    "list nodes") printf '{"node_id": 1}%.0s' $(cat "$LOG.alive") ;;
    "stop "*) touch "$LOG.stopped" ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path, ray_version: str):
    """Call it with a command: starts slurm.sh on four pretended nodes. `slurm.started()`: what ran, in order."""
    binaries, home, log = tmp_path / "bin", tmp_path / "home", tmp_path / "log"
    for made in binaries, home / ".ray", home / "simplear_runs":
        made.mkdir(parents=True)
    token = home / ".ray" / "auth_token"
    token.write_text("secret")
    token.chmod(0o600)
    stand_ins = {"srun": SRUN, "scontrol": SCONTROL, "getent": GETENT, "ray": RAY.replace("VERSION", ray_version)}
    for name, text in stand_ins.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    environment = {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "HOME": str(home),
        "LOG": str(log),
        "SLURM_JOB_NODELIST": "gpu[1-4]",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_ON_NODE": "96",
    }

    running: list[subprocess.Popen[str]] = []

    def start(*command: str, **more: str) -> subprocess.Popen[str]:
        variables = {name: value for name, value in (environment | more).items() if value}
        process = subprocess.Popen(
            [SCRIPT, *command],
            cwd=ROOT,
            env=variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        running.append(process)
        return process

    start.token, start.home, start.log = token, home, log
    start.started = lambda: log.read_text().splitlines() if log.exists() else []
    yield start
    for process in running:  # whatever a failed test left behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=20)
    return process.returncode, output


def test_bash_parses_it_and_slurm_is_asked_for_four_nodes_of_eight_gpus():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    options = {line.removeprefix("#SBATCH ") for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")}
    assert {"--nodes=4", "--gpus-per-node=8", "--exclusive", "--signal=B:TERM@300"} <= options


def test_head_then_workers_then_command_then_stop(slurm):
    code, output = finish(slurm("bash", "-c", 'echo "command at $RAY_ADDRESS" >> "$LOG"'))
    assert (code, slurm.started()) == (
        0,
        [
            f"srun --nodes=4 test -w {slurm.home}/simplear_runs/.slurm-7",
            "srun --nodes=1 --nodelist=gpu4 getent ahostsv4 gpu1",
            "srun --nodes=1 --nodelist=gpu1 ray start --head --node-ip-address=10.0.0.1 --port=6379 "
            "--dashboard-host=127.0.0.1 --block",
            "srun --nodes=3 --exclude=gpu1 ray start --address=10.0.0.1:6379 --block",
            "command at 10.0.0.1:6379",
            "srun --nodes=3 --exclude=gpu1 ray stop",
            "srun --nodes=1 --nodelist=gpu1 ray stop",
        ],
    ), output
    assert Path(f"{slurm.log}.env").read_text().split() == [
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1",
        "RAY_AUTH_MODE=token",
        f"RAY_AUTH_TOKEN_PATH={slurm.token}",
    ]
    assert "secret" not in output
    assert list((slurm.home / "simplear_runs").iterdir()) == []


def test_one_node_has_no_workers(slurm):
    code, output = finish(slurm("true", SLURM_JOB_NODELIST="gpu1"))
    assert code == 0, output
    assert not any("--exclude" in line for line in slurm.started())


def test_the_exit_code_is_the_commands(slurm):
    assert finish(slurm("bash", "-c", "exit 7"))[0] == 7
    assert slurm.started()[-1].endswith("ray stop")


def test_sigterm_reaches_the_command_which_ends_in_its_own_time(slurm):
    command = (
        """trap 'sleep 0.5; echo "saved" >> "$LOG"; exit 5' TERM; echo running >> "$LOG"; while :; do sleep 0.1; done"""
    )
    process = slurm("bash", "-c", command)
    deadline = time.monotonic() + 15
    while "running" not in slurm.started():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 5, output
    assert [line.split()[-1] for line in slurm.started()[-3:]] == ["saved", "stop", "stop"]


def test_sigterm_while_the_nodes_join_stops_them(slurm):
    process = slurm("touch", str(slurm.log) + ".ran", MISSING="1")
    while not any("--exclude" in line for line in slurm.started()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    assert slurm.started()[-1].endswith("ray stop")
    assert not Path(f"{slurm.log}.ran").exists()


def test_ray_that_does_not_stop_is_killed(slurm):
    assert finish(slurm("true", STUCK="1"))[0] == 0


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MISSING": "1", "RAY_START_SECONDS": "2"}, "waited 2 s in vain for all 4 nodes to join"),
        ({"HEAD_DIES": "1"}, "a Ray process ended while this waited for the head to answer"),
    ],
)
def test_the_command_is_not_run_on_half_a_cluster(slurm, variables, message):
    code, output = finish(slurm("touch", str(slurm.log) + ".ran", **variables))
    assert (code, message in output) == (2, True), output
    assert slurm.started()[-1].endswith("ray stop")
    assert not Path(f"{slurm.log}.ran").exists()


def test_bad_input_is_refused_before_anything_starts(slurm):
    def refused(*command: str, **variables: str) -> str:
        code, output = finish(slurm(*command, **variables))
        assert code == 2, output
        assert not any("ray start" in line for line in slurm.started())
        return output

    assert "no command" in refused()
    assert "not a Slurm job" in refused("true", SLURM_JOB_NODELIST="")
    assert "found 'ray, version 2.1.0'" in refused("true", RAY_INSTALLED="2.1.0")
    (slurm.home / "simplear_runs").rmdir()
    assert "simplear_runs: expected a folder that all nodes share" in refused("true")
    slurm.token.chmod(0o644)
    assert "expected mode 600, found 644" in refused("true")
    slurm.token.unlink()
    assert "auth_token: missing" in refused("true")
