"""Whether a policy can be served, and how many of its images an engine draws at a time."""

from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from simplear_rl.config.serving import ServeConfig
from simplear_rl.errors import all_faults
from simplear_rl.files import require_weights
from simplear_rl.inputs import require_same_tokenizer
from simplear_rl.policy.sizes import read_sizes
from simplear_rl.policy.vocabulary import read_encoder, read_layout
from simplear_rl.rollout import capacity
from simplear_rl.run.checkpoints import checkpoints, damage
from simplear_rl.tokenizers.cosmos import read_geometry


def served_policy(config: ServeConfig) -> Path:
    """The folder an engine starts from: the newest intact checkpoint of `follow` or, where there is none, `policy`."""
    done = reversed(checkpoints(config.follow)) if config.follow else ()
    return next((folder / "model" for folder in done if _intact(folder)), config.policy)


@cache
def _intact(checkpoint: Path) -> bool:
    """Reads all of it, so once."""
    with suppress(OSError):
        return damage(checkpoint) is None
    return False


def check_policy(config: ServeConfig) -> None:
    """Raise UserError unless policy and tokenizer are there and fit each other."""
    policy = served_policy(config)
    all_faults(partial(read_geometry, config.tokenizer), partial(read_layout, policy))
    read_layout(policy, config.tokenizer)
    read_encoder(policy, config.engine.max_prompt_tokens)
    require_weights(policy)
    require_same_tokenizer(config.tokenizer, [policy], accept=config.accept_tokenizer)


def images_at_once(config: ServeConfig) -> int:
    """Unguided images that one engine draws at a time. Raises UserError if not even one guided image fits."""
    decoder = read_sizes(served_policy(config))
    return capacity.images_at_once(decoder, config.engine, guided=False)
