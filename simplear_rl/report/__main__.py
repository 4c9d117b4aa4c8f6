"""A page of one run, or of several side by side: curves, samples, times, faults, and how the configurations differ.

A RUN is a run folder, or a folder with run folders in it, such as the demo's. The page is one file. It needs no
network.
"""

import argparse
from pathlib import Path

from simplear_rl.cli import exit_on_user_error

EXAMPLES = """examples:
  python -m simplear_rl.report runs/grpo
  python -m simplear_rl.report runs/grpo runs/other --output runs/both.html
  python -m simplear_rl.report runs/demo --serve        a live view on http://127.0.0.1:8700"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m simplear_rl.report",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a folder of some")
    p.add_argument("--output", type=Path, help="file (default: report.html in the first RUN)")
    p.add_argument(
        "--serve",
        nargs="?",
        const=8700,
        type=int,
        metavar="PORT",
        help="write no file, but serve the page to this machine alone, made anew for every visit (default: 8700)",
    )
    return p


if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    options = parser().parse_args()

from simplear_rl.report.page import write_report
from simplear_rl.report.serve import serve


def report(options: argparse.Namespace) -> None:
    """Write the page, or serve it until the process ends."""
    if options.serve is not None:
        serve(options.runs, options.serve)
    else:
        print(write_report(options.runs, options.output))


if __name__ == "__main__":
    exit_on_user_error("report", lambda: report(options))
