"""What a command reads must be there before it starts: found, made by a stage or the miniature world, or refused."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from simplear_rl.config.base import CONFIGS, CommandConfig
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.data.shards import TokenShards
from simplear_rl.errors import UserError, all_faults
from simplear_rl.files import is_hub_id, is_there
from simplear_rl.policy.vocabulary import MADE_BY, read_image_tokenizer
from simplear_rl.run.checkpoints import checkpoints
from simplear_rl.shapes import prepare
from simplear_rl.tokenizers.cosmos import read_identity

Stages = Mapping[str, Callable[[SupervisedConfig], None]]  # by name, what runs a training stage


def require(
    config: CommandConfig,
    *paths: Path,
    stages: Stages | None = None,
    checks: Sequence[Callable[[], object]] = (),
) -> None:
    """Make sure that every path exists; the embedded world makes its own where they are missing.

    Where a stage of `stages` is missing its result, `root/<stage>/final`, it is run. A Hugging Face id is fetched by
    what reads it. `checks` are made as well, and raise UserError.

    Raises:
        UserError: before anything is made, all faults together: a path is missing and `config.world` does not make it,
            or it cannot be looked at; what the checks found.
    """
    all_faults(*(partial(_maker, config, path, stages or {}) for path in paths), *checks)
    for path in paths:
        if make := _maker(config, path, stages or {}):
            make()


def is_made(config: CommandConfig, path: Path) -> bool:
    """Whether the embedded world, or a stage on it, makes what is missing at `path`."""
    return config.world == "shapes" and (path in prepare.products(config.root) or bool(_stage(config, path)))


def _maker(config: CommandConfig, path: Path, stages: Stages) -> Callable[[], None] | None:
    """What makes `path`; None if it is there. Raises UserError."""
    if is_there(path) or is_hub_id(path):
        return None
    if config.world == "shapes" and path in prepare.products(config.root):
        return partial(prepare.make, path, config)
    if config.world == "shapes" and (stage := _stage(config, path)) in stages:
        return partial(_train, config, path, stage, stages[stage])
    left = path.name == "final" and checkpoints(path.parent)
    hint = f"; the command of the run {path.parent} sets it once all its steps are done" if left else ""
    if path in (getattr(config, "start", None), getattr(config, "policy", None)) and not left:
        hint = f"; {MADE_BY}"
    raise UserError(f"{path}: not found, and no earlier stage or embedded world makes it{hint}")


def _stage(config: CommandConfig, path: Path) -> str:
    """The supervised stage whose result `path` is; "" if none."""
    return next((stage for stage in ("pretrain", "sft") if path == config.root / stage / "final"), "")


def _train(config: CommandConfig, path: Path, stage: str, train: Callable[[SupervisedConfig], None]) -> None:
    prepare.announce(path)
    values = [f"root={config.root}", f"seed={config.seed}"]
    train(load_config(SupervisedConfig, CONFIGS / "shapes" / f"{stage}.yaml", values))


def require_same_tokenizer(
    tokenizer: Path, policies: Sequence[Path], shards: Sequence[TokenShards] = (), accept: str | None = None
) -> str:
    """Make sure that all codes mean the same: those of shards, of policies and of the visual tokenizer.

    Two tokenizers of one geometry have codes of other meaning. Shards and policies that do not say which tokenizer they
    are of are taken as they are. `accept` is the identity of one more tokenizer that they may be of.

    Returns:
        The identity of `tokenizer`, see `read_identity`.

    Raises:
        UserError: a shard or a policy is of another tokenizer; names each with both identities.
    """
    own = read_identity(tokenizer)
    found = [(policy, read_image_tokenizer(policy)) for policy in policies]
    found += [(file, identity) for part in shards for identity, file in part.tokenizers.items()]
    others = [(path, identity) for path, identity in found if identity not in (None, own, accept)]
    if others:
        lines = [f"  {path}: {identity}" for path, identity in others]
        raise UserError(
            "\n".join(
                [
                    f"{tokenizer}: this visual tokenizer is {own}, but codes of another one are in:",
                    *lines,
                    f"name the tokenizer that they were made with, or set accept_tokenizer={others[0][1]} if its codes "
                    "mean the same",
                ]
            )
        )
    return own
