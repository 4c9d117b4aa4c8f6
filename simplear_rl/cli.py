"""The command line that all stages share: `--config FILE key=value ...`."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import Schema, known_keys, load_config
from simplear_rl.errors import UserError, causes

EXAMPLES = """\
  python -m simplear_rl.{name}                       the miniature world, on this machine or its Ray cluster
  python -m simplear_rl.{name} seed=1 root=runs/one  the same with another seed, in another folder"""


def run_command(
    command: Callable[[Schema], object],
    schema: type[Schema],
    name: str,
    examples: str = EXAMPLES,
    benchmarks: Sequence[str] = ("shapes",),
    dry_run: Callable[[Schema], object] | None = None,
    options: Mapping[str, str] | None = None,
) -> None:
    """Parse the command line, run `command` on its configuration, and turn user errors into one message.

    Where there are several `benchmarks`, each has a configuration of its own and --benchmark chooses. With `--dry-run`,
    `dry_run` runs instead. `options` are shorthands: of {"--model": "policy"} the option --model X is `policy=X`, of
    {"--allow-missing": "allow_missing=true"} --allow-missing is that.
    """
    default = f"configs/{'BENCHMARK' if len(benchmarks) > 1 else benchmarks[0]}/{name}.yaml"
    parser = argparse.ArgumentParser(
        prog=f"python -m simplear_rl.{name}",
        description=sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"""examples:
{examples.format(name=name)}
  ray job submit --working-dir . -- python -m simplear_rl.{name} --config configs/shapes/{name}.yaml

keys: {", ".join(known_keys(schema))}""",
    )
    configuration = parser.add_mutually_exclusive_group()
    if len(benchmarks) > 1:
        configuration.add_argument("--benchmark", choices=benchmarks, help=f"(default: {benchmarks[0]})")
    configuration.add_argument("--config", type=Path, help=f"YAML file (default: {default})")
    if dry_run:
        parser.add_argument("--dry-run", action="store_true", help="check and print what the run takes, start nothing")
    parser.set_defaults(options=[])
    shorthand = partial(parser.add_argument, dest="options")
    for option, key in (options or {}).items():
        if "=" in key:
            shorthand(option, action="append_const", const=key, help=f"short for {key}")
        else:
            value = partial(_override, key)
            shorthand(option, action="append", type=value, metavar="VALUE", help=f"short for {key}=VALUE")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's")
    arguments = parser.parse_intermixed_args()
    file = arguments.config or CONFIGS / (vars(arguments).get("benchmark") or benchmarks[0]) / f"{name}.yaml"
    chosen = dry_run if dry_run and arguments.dry_run else command
    overrides = [*arguments.options, *arguments.overrides]
    exit_on_user_error(name, lambda: chosen(load_config(schema, file, overrides)))


def _override(key: str, text: str) -> str:
    """The override that sets a key to just this text, whatever it would mean in YAML."""
    return f"{key}={json.dumps(text, ensure_ascii=False)}"


def exit_on_user_error(name: str, command: Callable[[], object]) -> None:
    """Run `command`; end the process with one message on a UserError, wherever it was raised, or on Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        command()
    except UserError as error:
        sys.exit(f"simplear_rl.{name}: {list(causes(error))[-1]}")
    except KeyboardInterrupt:
        print(f"\nsimplear_rl.{name}: stopped; the same command continues where this one ended", flush=True)
        os._exit(130)  # Ray's threads would print their own complaints on the way out
