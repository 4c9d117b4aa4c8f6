"""Serving a policy over HTTP."""

from ipaddress import ip_address

from pydantic import Field, field_validator, model_validator

from simplear_rl.config.base import (
    Count,
    Location,
    LocationOrHubId,
    PoolConfig,
    Positive,
    Section,
    TokenizerIdentity,
)
from simplear_rl.config.rollout import EngineConfig


class LimitsConfig(Section):
    """What one request, one key and all of them together may ask for."""

    body_bytes: Count = Field(65536, description="of a request; a longer one is answered with 413")
    images_per_request: Count = Field(16, description="prompts times n")
    requests_per_key: Count = Field(128, description="at a time; one more is answered with 429")
    queued_images: Count = Field(
        256,
        description="that wait or are drawn; where more would, the answer is 429. One of "
        "several keys has half of them at most",
    )
    deadline_seconds: Positive = Field(300, description="an image that takes longer is given up: 503")

    @model_validator(mode="after")
    def _a_request_fits(self) -> "LimitsConfig":
        if self.queued_images < self.images_per_request:
            raise ValueError(
                f"images_per_request ({self.images_per_request}): expected at most queued_images "
                f"({self.queued_images}), or the largest request never gets in"
            )
        return self


class ServeConfig(Section):
    """The policy that is served, where, and by how many actors."""

    policy: Location = Field(description="policy folder that draws")
    tokenizer: LocationOrHubId = Field(description="visual tokenizer: folder or Hugging Face id")
    accept_tokenizer: TokenizerIdentity | None = Field(
        None, description="identity of another visual tokenizer, whose policies are taken for `tokenizer`'s"
    )
    follow: Location | None = Field(
        None,
        description="run folder: its newest checkpoint is served instead of `policy`, and each new one",
    )
    follow_seconds: Positive = Field(5, description="between two looks into `follow`")
    name: str = Field("simplear", pattern=r"^[\w.:-]+$", description="of the model in the API")
    host: str = Field("127.0.0.1", description="address to listen on; others than loopback need SIMPLEAR_API_KEY")
    port: int = Field(8000, ge=1, le=65535)
    cors_origins: list[str] = Field([], description="web origins whose pages may use the API")
    log_prompts: bool = Field(False, description="the log names prompts")
    url_seconds: Positive = Field(3600, description="how long the file behind a `url` stays")
    engine: EngineConfig = EngineConfig()
    decoders: PoolConfig = PoolConfig()
    limits: LimitsConfig = LimitsConfig()

    @field_validator("engine")
    @classmethod
    def _draws_by_steps(cls, engine: EngineConfig) -> EngineConfig:
        if engine.type == "sjd":
            raise ValueError("expected vllm or transformers: sjd has no rows to show before an image is complete")
        return engine

    @property
    def on_loopback(self) -> bool:
        """Whether nothing but this machine can reach the server."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
