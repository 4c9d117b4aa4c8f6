"""The API in this process: an engine and a decoder without Ray, and OpenAI's own client."""

import asyncio
from collections.abc import Callable

import httpx
import openai
import pytest

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.config.serving import LimitsConfig, ServeConfig
from simplear_rl.policy.vocabulary import read_encoder, read_layout
from simplear_rl.serving.api import Api
from simplear_rl.serving.batches import build_batch
from simplear_rl.serving.drawing import Drawing
from simplear_rl.serving.limits import digest
from simplear_rl.serving.pictures import Pictures
from simplear_rl.tokenizers.cosmos import read_geometry

ENGINE = EngineConfig(type="transformers", max_concurrent=8, max_prompt_tokens=32)


class LocalArtist:
    """Draws in this process."""

    def __init__(self, config: ServeConfig):
        self.drawing = Drawing(build_batch(config.policy, config.engine))
        self.pictures = Pictures(config.tokenizer, read_layout(config.policy), "cpu")
        self.there = True

    def loaded(self):
        return self.there

    def draw(self, *arguments):
        return self.drawing.draw(*arguments)

    async def picture(self, codes, output_format):
        return self.pictures(codes, output_format)


@pytest.fixture(scope="session")
def artist(world):
    return LocalArtist(ServeConfig(policy=world / "policy", tokenizer=world / "tokenizer", engine=ENGINE))


@pytest.fixture
def make_api(world, artist) -> Callable[..., Api]:
    """An API with these keys, and other values of its configuration."""

    def make_api(*keys: str, limits: dict | None = None, **values) -> Api:
        config = ServeConfig(
            policy=world / "policy",
            tokenizer=world / "tokenizer",
            engine=ENGINE,
            limits=LimitsConfig(**(limits or {})),
            **values,
        )
        layout, encode = read_layout(config.policy), read_encoder(config.policy, ENGINE.max_prompt_tokens)
        patch = read_geometry(config.tokenizer).patch
        return Api(config, layout, encode, patch, [digest(key) for key in keys], artist)

    return make_api


def http(api: Api) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(api.application()), base_url="http://localhost")


def client(api: Api, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=key, base_url="http://localhost/v1", http_client=http(api), max_retries=0)


def run(coroutine):
    return asyncio.run(coroutine)
