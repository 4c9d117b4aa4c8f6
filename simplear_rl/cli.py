"""The command line that the commands share: `--config FILE key=value ...`.

Nothing here imports torch, Ray or Transformers, so that --help and mistakes are answered before they are imported.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Generic, TypeVar, get_args

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.keys import describe_keys
from simplear_rl.config.load import Schema, load_config
from simplear_rl.errors import UserError, causes, device_memory_error

Result = TypeVar("Result")
MISSING = 3  # exit status of a dry run that found all well, but for inputs that are not there
EXAMPLES = """\
  python -m simplear_rl.{name}                       the miniature world, here or on a Ray cluster
  python -m simplear_rl.{name} seed=1 root=runs/one  the same with another seed, in another folder"""
RAY_JOB = """
  ray job submit --working-dir . -- \\
      python -m simplear_rl.{name} --config configs/shapes/{name}.yaml"""


@dataclass(frozen=True)
class CommandLine(Generic[Schema]):
    """What the user asked of the command `name`."""

    name: str
    config: Schema
    dry_run: bool

    def run(self, command: Callable[[Schema], object], dry_run: Callable[[Schema], Sized] | None = None) -> None:
        """Call `command` with the configuration, see `exit_on_user_error`.

        Where --dry-run was given `dry_run` is called instead. It returns what is missing; if anything is, the process
        ends with the status MISSING.
        """
        if not (dry_run and self.dry_run):
            exit_on_user_error(self.name, lambda: command(self.config))
        elif exit_on_user_error(self.name, lambda: dry_run(self.config)):
            sys.exit(MISSING)


def read_command_line(
    schema: type[Schema],
    name: str,
    examples: str = EXAMPLES,
    dry_run: bool = False,
    options: Mapping[str, str] | None = None,
    on_ray: bool = True,
    words: Sequence[str] = (),
) -> CommandLine[Schema]:
    """Parse the command line and load the configuration; --help and user errors end the process with their message.

    Where the schema has a `benchmark`, each has a configuration of its own and --benchmark chooses. `dry_run` offers
    --dry-run. `options` are shorthands: of {"--model": "policy"} the option --model X is `policy=X`, of
    {"--allow-missing": "allow_missing=true"} --allow-missing is that. `on_ray` adds the example of a Ray job.
    Words that are no key=value are the values of the keys `words`, in this order.
    """
    field = schema.model_fields.get("benchmark")
    benchmarks = get_args(field.annotation) if field else ("shapes",)
    default = f"configs/{'BENCHMARK' if len(benchmarks) > 1 else benchmarks[0]}/{name}.yaml"
    width = min(100, get_terminal_size().columns)
    about = sys.modules["__main__"].__doc__ or ""
    parser = argparse.ArgumentParser(
        prog=f"python -m simplear_rl.{name}",
        description="\n\n".join(fill(paragraph, width) for paragraph in about.split("\n\n")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"""examples:
{(examples + (RAY_JOB if on_ray else "")).format(name=name)}

keys: type (default where the file names no value)  description
{describe_keys(schema, width)}""",
    )
    configuration = parser.add_mutually_exclusive_group()
    if len(benchmarks) > 1:
        configuration.add_argument("--benchmark", choices=benchmarks, help=f"(default: {benchmarks[0]})")
    configuration.add_argument("--config", type=Path, help=f"YAML file (default: {default})")
    if dry_run:
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="check and print what the run takes, start nothing; exit status: 0, or 1 if it cannot be, or "
            f"{MISSING} if only inputs are missing",
        )
    parser.set_defaults(options=[])
    shorthand = partial(parser.add_argument, dest="options")
    for option, key in (options or {}).items():
        if "=" in key:
            shorthand(option, action="append_const", const=key, help=f"short for {key}")
        else:
            value = f"{key}={{}}".format
            shorthand(option, action="append", type=value, metavar="VALUE", help=f"short for {key}=VALUE")
    metavar = "key=value" if not words else f"{'|'.join(word.upper() for word in words)}|key=value"
    parser.add_argument("overrides", nargs="*", metavar=metavar, help="values that replace the file's")
    arguments = vars(parser.parse_intermixed_args())
    packaged = CONFIGS / (arguments.get("benchmark") or benchmarks[0]) / f"{name}.yaml"
    file = _find(arguments["config"]) if arguments["config"] else packaged
    keys = iter(words)
    given = [part if "=" in part else f"{next(keys, '')}={part}" for part in arguments["overrides"]] if words else []
    overrides = [*arguments["options"], *(given or arguments["overrides"])]
    config = exit_on_user_error(name, lambda: load_config(schema, file, overrides))
    return CommandLine(name, config, arguments.get("dry_run", False))


def _find(file: Path) -> Path:
    """`file` itself or, where there is none, the packaged one of that path (configs/shapes/grpo.yaml)."""
    packaged = CONFIGS.parent / file
    return packaged if os.path.exists(packaged) and not os.path.exists(file) else file


def exit_on_user_error(name: str, command: Callable[[], Result]) -> Result:
    """Return what `command` does.

    A UserError, wherever it was raised, a full GPU or Ctrl-C ends the process with one message.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if isinstance(sys.stdout, TextIOWrapper):  # paths and prompts may hold characters that the locale lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return command()
    except UserError as error:
        sys.exit(f"simplear_rl.{name}: {list(causes(error))[-1]}")
    except Exception as error:
        if not (full := device_memory_error(error)):
            raise
        where = f"{actor}: " if (actor := getattr(error, "actor_repr", "")) else ""
        sys.exit(
            f"simplear_rl.{name}: {where}the GPU has no memory left: {str(full).splitlines()[0]}\n"
            "Take fewer images at a time (batch_size, learner.micro_batch, engine.max_concurrent), or a larger part of "
            "a GPU; --dry-run of a training plans the memory of every actor and names the keys that lower it"
        )
    except KeyboardInterrupt:
        print(f"\nsimplear_rl.{name}: stopped; the same command goes on from what this one has written", flush=True)
        os._exit(130)  # Ray's threads would print their own complaints on the way out
