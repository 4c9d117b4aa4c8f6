"""Serving on Ray Serve: an API in front of engines and decoders, each on actors of their own."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from typing import Any

# Ray gives its proxy five seconds to start, which a busy machine does not do; read when ray.serve is imported.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")

import grpc
import numpy as np
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application, Deployment
from ray.serve.exceptions import ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from starlette.applications import Starlette

from actors.environment import actor_environment
from simplear_rl.config.base import PoolConfig
from simplear_rl.config.serving import ServeConfig
from simplear_rl.errors import UserError
from simplear_rl.policy.vocabulary import read_encoder, read_layout
from simplear_rl.serving.api import Api
from simplear_rl.serving.batches import ImageRequest
from simplear_rl.serving.drawing import EngineFailedError, LateError, Progress
from simplear_rl.serving.limits import digest
from simplear_rl.serving.room import check_policy, images_at_once, served_policy
from simplear_rl.tokenizers.cosmos import read_geometry

KEYS = "SIMPLEAR_API_KEY"
LOG = logging.getLogger("simplear.serve")
LOST = (RayActorError, EngineFailedError, ReplicaUnavailableError, grpc.aio.AioRpcError)
RETRY = 0.2  # seconds until an image of a lost replica is asked for again
# Serve's own work for a request takes the engine's time where cores are few (docs/timings.md). So messages go straight
# from replica to replica instead of through Ray's object store, without an event loop of their own.
LEAN = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**28),  # bytes: a picture is one message
}


@serve.deployment(health_check_period_s=5)
class Engine:
    """A replica: one engine, which draws for all that ask at the same time."""

    def __init__(self, config: ServeConfig):
        from simplear_rl.serving.batches import build_batch
        from simplear_rl.serving.drawing import Drawing

        self.drawing = Drawing(build_batch(served_policy(config), config.engine))
        if config.follow:
            from simplear_rl.serving.following import Following

            self.following = Following(config.follow, config.follow_seconds, config.engine.dtype, self.drawing)

    def ready(self) -> int:
        """Answers once the engine is there; with the process, for those who try what happens without it."""
        return os.getpid()

    def check_health(self) -> None:
        """Serve replaces a replica whose engine has failed."""
        self.drawing.require_alive()

    async def whole(self, image: ImageRequest, user: str, seconds: float) -> Progress:
        """The whole image. Raises LateError."""
        async for progress in self.drawing.draw(image, user, seconds):
            whole = progress
        return whole

    async def parts(
        self, image: ImageRequest, user: str, seconds: float, stops: Collection[int]
    ) -> AsyncIterator[Progress]:
        """See Drawing.draw."""
        async for progress in self.drawing.draw(image, user, seconds, stops):
            yield progress


@serve.deployment(health_check_period_s=5)
class Decoder:
    """A replica: codes become pictures, see Pictures."""

    def __init__(self, config: ServeConfig):
        from simplear_rl.device import default_device
        from simplear_rl.serving.pictures import Pictures

        self.pictures = Pictures(config.tokenizer, read_layout(served_policy(config)), default_device())

    def ready(self) -> None:
        """Answers once the tokenizer is there."""

    async def picture(self, codes: np.ndarray, output_format: str) -> bytes:
        """See Pictures."""
        return self.pictures(codes, output_format)


class ServedArtist:
    """Draws on the replicas. What a lost replica owed is drawn by another, to the same image."""

    def __init__(self, engines: DeploymentHandle, decoders: DeploymentHandle):
        self.whole, self.parts = engines.whole, engines.parts.options(stream=True)
        self.decode = decoders.picture
        self.loading = asyncio.create_task(_load(engines.ready, decoders.ready))

    def loaded(self) -> bool:
        """See Artist."""
        return self.loading.done() and self.loading.exception() is None

    async def draw(
        self, image: ImageRequest, user: str, seconds: float, stops: Collection[int]
    ) -> AsyncIterator[Progress]:
        """See Artist."""
        deadline, shown = time.monotonic() + seconds, 0
        while (left := deadline - time.monotonic()) > 0:
            try:
                async for progress in self._draw(image, user, left, stops):
                    if len(progress.codes) > shown:  # another replica begins anew
                        shown = len(progress.codes)
                        yield progress
                return
            except TimeoutError:  # no replica took it
                break
            except (*LOST, RuntimeError) as error:
                if not _lost(error):
                    raise
                LOG.warning("an image is drawn again: %s", str(error).partition("\n")[0])
                await asyncio.sleep(RETRY)
        raise LateError

    async def _draw(
        self, image: ImageRequest, user: str, seconds: float, stops: Collection[int]
    ) -> AsyncIterator[Progress]:
        """On one replica, which is told when nobody listens any more. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        if not stops:
            yield await asyncio.wait_for(_cancelled_with_me(self.whole.remote(image, user, seconds)), seconds)
            return
        parts = self.parts.remote(image, user, seconds, stops)
        try:
            with suppress(StopAsyncIteration):
                while True:
                    yield await asyncio.wait_for(anext(parts), deadline - time.monotonic())
        finally:
            parts.cancel()

    async def picture(self, codes: np.ndarray, output_format: str) -> bytes:
        """See Artist."""
        while True:
            try:
                return await _cancelled_with_me(self.decode.remote(codes, output_format))
            except LOST:
                await asyncio.sleep(RETRY)


def _lost(error: Exception) -> bool:
    """Whether it says that a replica is gone: what it owed can be asked of another."""
    # Of a replica that dies while it takes a stream Serve raises this RuntimeError.
    return isinstance(error, LOST) or str(error).startswith("Unexpected error (")


async def _load(*ready: DeploymentHandle) -> None:
    for deployment in ready:
        while True:
            try:
                await deployment.remote()
                break
            except LOST:
                await asyncio.sleep(RETRY)


async def _cancelled_with_me(response: DeploymentResponse) -> Any:
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


# Its requests are in memory, its files on its disk: there is one replica.
@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.25, "runtime_env": {"env_vars": LEAN}})
@serve.ingress()
class Front:
    """The API."""

    def __init__(self, config: ServeConfig, digests: list[str], engines: DeploymentHandle, decoders: DeploymentHandle):
        self.config, self.digests, self.handles = config, digests, (engines, decoders)
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
        LOG.setLevel(logging.INFO)

    def __serve_build_asgi_app__(self) -> Starlette:
        """What answers; Serve calls it after the constructor."""
        config, policy = self.config, served_policy(self.config)
        layout, encode = read_layout(policy), read_encoder(policy, config.engine.max_prompt_tokens)
        patch = read_geometry(config.tokenizer).patch
        return Api(config, layout, encode, patch, self.digests, ServedArtist(*self.handles)).application()


def application(config: ServeConfig) -> Application:
    """What `serve run` and `serve deploy` start; the keys are those of the environment that it is built in.

    Raises:
        UserError: the policy cannot be served, see check_policy and images_at_once; others than this machine could
            reach the server, and no key is set.
    """
    check_policy(config)
    keys = [key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip()]
    if not keys and not config.on_loopback:
        raise UserError(f"host {config.host}: others could use this server: set {KEYS} to a key, or to several, a,b")
    at_once = images_at_once(config)
    # More than are drawn at once: their order is that of Waiting, which knows the users; Serve's own queue does not.
    most = config.limits.queued_images
    engine: Deployment = Engine
    decoder: Deployment = Decoder
    front: Deployment = Front
    engines = engine.options(max_ongoing_requests=most, **_replicas(config.engine.actors, at_once))
    decoders = decoder.options(max_ongoing_requests=most, **_replicas(config.decoders, 32))
    api = front.options(max_ongoing_requests=most + 512)  # those that are answered with 429 have to get in
    return api.bind(config, [digest(key) for key in keys], engines.bind(config), decoders.bind(config))


def _replicas(actors: PoolConfig, at_once: int) -> dict[str, Any]:
    """Options of a deployment; with `max_count` one more replica comes when the others have too much to do at once."""
    options = {
        "num_cpus": actors.cpus,
        "num_gpus": actors.gpus,
        "runtime_env": {"env_vars": LEAN | actor_environment(actors)},
    }
    most = actors.max_count or actors.count
    if most == actors.count:
        return {"num_replicas": actors.count, "ray_actor_options": options}
    scaling = {"min_replicas": actors.count, "max_replicas": most, "target_ongoing_requests": at_once}
    return {"autoscaling_config": scaling, "ray_actor_options": options}
