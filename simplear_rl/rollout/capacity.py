"""How many images an engine draws at a time: slots and key-value cache."""

from math import ceil

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.errors import UserError
from simplear_rl.policy.sizes import BYTES, PolicySizes

GIB = 2**30
BLOCK, CPU_BLOCK = 16, 128  # tokens of a block of vLLM's key-value cache, on a GPU and on a CPU


def block_tokens(engine: EngineConfig) -> int:
    """Tokens that an engine takes room for at a time."""
    return CPU_BLOCK if engine.type == "vllm" and not engine.actors.gpus else BLOCK


def context_cache(decoder: PolicySizes, engine: EngineConfig) -> float:
    """Key-value cache of one context at its full length, in whole blocks."""
    block = block_tokens(engine)
    tokens = ceil((engine.max_prompt_tokens + decoder.tokens) / block) * block
    return tokens * 2 * decoder.layers * decoder.kv_heads * decoder.head_size * BYTES[engine.dtype]


def engine_cache(decoder: PolicySizes, engine: EngineConfig) -> float:
    """The whole key-value cache: vLLM takes `kv_cache_gib`, the other engines what `max_concurrent` contexts need."""
    if engine.type == "vllm":
        return engine.kv_cache_gib * GIB
    return engine.max_concurrent * context_cache(decoder, engine)


def gib_for(contexts: int, decoder: PolicySizes, engine: EngineConfig) -> float:
    """`kv_cache_gib` for so many contexts, and the block that vLLM keeps for itself."""
    return (contexts + 1) * context_cache(decoder, engine) / GIB


def images_at_once(decoder: PolicySizes, engine: EngineConfig, guided: bool, key: str = "rollout.engine") -> int:
    """How many images an engine draws at a time: slots and cache; of each image's contexts it takes all or none.

    `key` is the engine's in the configuration.

    Raises:
        UserError: not even one guided image fits.
    """
    contexts = engine.max_concurrent
    if engine.type == "vllm":  # which keeps one block for itself
        context = context_cache(decoder, engine)
        block = context / ceil((engine.max_prompt_tokens + decoder.tokens) / block_tokens(engine))
        contexts = min(contexts, int((engine_cache(decoder, engine) - block) // context))
    if contexts < 2:
        raise UserError(
            f"a guided image takes 2 contexts of {context_cache(decoder, engine) / GIB:.3f} GiB each; "
            f"{key}.kv_cache_gib={engine.kv_cache_gib:g} and {key}.max_concurrent={engine.max_concurrent} have "
            f"room for {contexts}: raise them"
        )
    return contexts // 2 if guided else contexts
