"""Drawing images for prompts, with no Ray cluster."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from simplear_rl.config.base import (
    Count,
    GuidanceConfig,
    Location,
    LocationOrHubId,
    NonNegative,
    Positive,
    TokenizerIdentity,
    absolute,
)
from simplear_rl.config.rollout import EngineType


def _as_given(path: Path) -> Path:
    """The user's own path, for the images' text entries."""
    absolute(path)  # raises ValueError
    return path.expanduser()


class GenerateConfig(GuidanceConfig):
    """What is drawn, from which policy, with which engine."""

    policy: Annotated[Path, AfterValidator(_as_given)] = Field(description="policy folder that draws")
    tokenizer: LocationOrHubId = Field(description="visual tokenizer: folder or Hugging Face id")
    accept_tokenizer: TokenizerIdentity | None = Field(
        None, description="identity of another visual tokenizer, whose policies are taken for `tokenizer`'s"
    )
    prompts: str = Field(
        description="a prompt, a file (a prompt a line, or .jsonl, .csv, .tsv, .parquet), or - for standard input"
    )
    engine: EngineType = Field("vllm", description="transformers: without vLLM; sjd: speculative Jacobi decoding")
    temperature: NonNegative = Field(1.0, description="0 is greedy")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="codes that are drawn from; 0 keeps the whole codebook")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of probability that is drawn from")
    seed: Annotated[int, Field(ge=0)] = 0
    images_per_prompt: Count = 1
    batch_size: Count = Field(16, description="images decoded together")
    kv_cache_gib: Positive | None = Field(
        None, description="vllm: memory of the key-value cache, GiB; null: what `batch_size` images take"
    )
    output: Location = Field(description="folder for the PNG files and contact_sheet.png")
