"""The report of a run while it trains: a browser on run/report.html is a live view."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from simplear_rl.report.page import write_report
from simplear_rl.run.folder import Run


@contextmanager
def reporting(run: Run) -> Iterator[None]:
    """Write the report after the first step, every `report_every` steps, after the last one and where the run stops.

    A thread writes it. It leaves a turn out while it is still at the one before, and a fault of it ends no run.
    """
    every, steps = run.config.report_every, run.config.steps
    if every is None:
        yield
        return
    writer, writing = ThreadPoolExecutor(1, "report"), list[Future[None]]()

    def write(step: int) -> None:
        if (not writing or step % every == 0 or step == steps) and all(turn.done() for turn in writing):
            writing[:] = [writer.submit(_write, run.folder)]

    run.after_step.append(write)
    try:
        yield
    finally:
        writer.shutdown()
        if (run.folder / "metrics.jsonl").exists():  # else it has not begun
            _write(run.folder, ended=True)


def _write(folder: Path, ended: bool = False) -> None:
    try:
        write_report([folder], ended=ended)
    except Exception as error:  # whatever is wrong with it: it is no reason to stop
        print(f"{folder}: no report: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
