"""The command line that all stages share: `--config FILE key=value ...`."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from simplear_rl.config import CONFIGS, CommandConfig, known_keys, load_config
from simplear_rl.errors import UserError


def run_command(command: Callable[[CommandConfig], object], schema: type[CommandConfig], name: str) -> None:
    """Parse the command line, run `command` on its configuration, and turn user errors into one message."""
    default = CONFIGS / "shapes" / f"{name}.yaml"
    parser = argparse.ArgumentParser(
        prog=f"python -m simplear_rl.{name}",
        description=sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"""examples:
  python -m simplear_rl.{name}                       the miniature world, on this machine or its Ray cluster
  python -m simplear_rl.{name} seed=1 root=runs/one  the same with another seed, in another folder
  ray job submit --working-dir . -- python -m simplear_rl.{name} --config configs/shapes/{name}.yaml

keys: {", ".join(known_keys(schema))}""",
    )
    parser.add_argument("--config", type=Path, default=default, help="YAML file (default: configs/shapes/%s.yaml)" % name)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's")
    arguments = parser.parse_args()
    with user_errors(name):
        command(load_config(schema, arguments.config, arguments.overrides))


class user_errors:  # noqa: N801  (reads like a statement)
    """Context that prints a UserError, wherever it was raised, as one message and exits with status 2."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, UserError):
            # Raised in an actor it arrives wrapped, with the original as cause.
            sys.exit(f"simplear_rl.{self.name}: {getattr(error, 'cause', error)}")
        if isinstance(error, KeyboardInterrupt):
            print(f"\nsimplear_rl.{self.name}: stopped; the same command continues from the last checkpoint", flush=True)
            os._exit(130)  # Ray's threads would print their own complaints on the way out
