"""The engines that draw images, and what GRPO draws in each step."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from simplear_rl.config.base import Count, PoolConfig, Positive, Section

EngineType = Literal["vllm", "transformers", "sjd"]


class EngineConfig(Section):
    """The rollout engines."""

    type: EngineType = Field(
        "vllm", description="transformers: without vLLM; sjd: speculative Jacobi decoding, which GRPO cannot use"
    )
    actors: PoolConfig = PoolConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_concurrent: Count = Field(64, description="contexts that one engine decodes at a time; a guided image has two")
    kv_cache_gib: Positive = Field(0.25, description="vllm: memory of one engine's key-value cache, GiB")
    max_prompt_tokens: Count = Field(64, description="longest prompt, special tokens included")
    batch_invariant: bool = Field(
        False, description="vllm on GPUs: kernels that round alike in every batch (VLLM_BATCH_INVARIANT); slower"
    )

    @model_validator(mode="after")
    def _has_such_kernels(self) -> "EngineConfig":
        if self.batch_invariant and self.type != "vllm":
            raise ValueError(f"batch_invariant: the engine {self.type} has no such kernels; set type to vllm")
        return self


class RolloutConfig(Section):
    """What is drawn in each step."""

    engine: EngineConfig = EngineConfig()
    prompts_per_step: Count = Field(description="groups of a step, of all learner ranks together")
    samples_per_prompt: Annotated[int, Field(ge=2)] = Field(description="G: the group that an advantage compares")
    refill: Annotated[int, Field(ge=0)] = Field(
        0,
        description="groups whose rewards are all equal are replaced by those of further prompts, up to so many times "
        "in a step",
    )
    ahead: Literal[0, 1] = Field(
        0,
        description="1: the next step is drawn while the learner takes this one, with weights that are a step older, "
        "for which algorithm.correction allows; 0: one after the other",
    )
    temperature: Positive = 1.0
    guidance_scale: Positive = Field(1.0, description="1 is unguided; what is drawn is what the learner optimises")
    broadcast: Literal["object_store", "collective", "ipc"] = Field(
        "object_store",
        description="weights to the engines: object_store: through the host; collective: device to device (NCCL, "
        "gloo); ipc: through memory that learner rank i and engine i share, on one GPU or one node's CPUs",
    )

    @field_validator("engine")
    @classmethod
    def _knows_log_probs(cls, engine: EngineConfig) -> EngineConfig:
        if engine.type == "sjd":
            raise ValueError("expected vllm or transformers: sjd does not compute the log-probs that GRPO needs")
        return engine
