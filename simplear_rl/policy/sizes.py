"""Sizes of a policy, and of the published ones."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from simplear_rl.policy.vocabulary import read_layout

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class PolicySizes:
    """Sizes of a policy."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocabulary: int  # text and visual ids
    codes: int
    tokens: int  # of one image

    @classmethod
    def of(cls, config: PreTrainedConfig, codes: int, tokens: int) -> "PolicySizes":
        """The sizes in a policy's config.json."""
        head_size = config.hidden_size // config.num_attention_heads
        heads = config.num_attention_heads, config.num_key_value_heads, head_size
        sizes = config.hidden_size, config.num_hidden_layers, *heads, config.intermediate_size
        return cls(*sizes, config.vocab_size, codes, tokens)

    @property
    def parameters(self) -> int:
        """All weights; the head is the embedding."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = 2 * self.hidden * query + query + 2 * (self.hidden + 1) * key
        layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.vocabulary * self.hidden + self.layers * layer + self.hidden


def published(name: str, resolution: int) -> PolicySizes:
    """SimpleAR (published code): Qwen2.5 with 151,672 text ids and the 64,000 codes of 16 x 16 pixels."""
    sizes = {"simplear-0.5b": (896, 24, 14, 2, 64, 4864), "simplear-1.5b": (1536, 28, 12, 2, 128, 8960)}
    return PolicySizes(*sizes[name], 215_672, 64_000, (resolution // 16) ** 2)


def read_sizes(policy: Path, tokenizer: Path | None = None) -> PolicySizes:
    """The sizes of a policy folder. Raises UserError, see `read_layout`."""
    layout = read_layout(policy, tokenizer)
    return PolicySizes.of(AutoConfig.from_pretrained(policy), layout.codebook_size, layout.tokens)
