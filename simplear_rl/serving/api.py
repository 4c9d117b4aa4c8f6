"""OpenAI's Images API as an ASGI application; what draws is handed in."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from simplear_rl.config.serving import ServeConfig
from simplear_rl.policy.vocabulary import ImageLayout, PromptEncoder
from simplear_rl.serving.answers import Answers
from simplear_rl.serving.batches import ImageRequest
from simplear_rl.serving.drawing import LateError, Progress
from simplear_rl.serving.errors import ApiError
from simplear_rl.serving.files import ExpiringFiles
from simplear_rl.serving.limits import Admission, authenticate
from simplear_rl.serving.metrics import Metrics
from simplear_rl.serving.requests import Generation, Reader

LOG = logging.getLogger("simplear.serve")
PAGE = Path(__file__).with_name("page.html")
# The page needs nothing from elsewhere.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LOADING = "the engines are loading: try again soon"
BODY_SECONDS = 30  # for all of it


class Artist(Protocol):
    """What draws for the API."""

    def loaded(self) -> bool:
        """Whether there are engines that draw."""

    def draw(self, image: ImageRequest, user: str, seconds: float, stops: Collection[int]) -> AsyncIterator[Progress]:
        """See Drawing."""

    async def picture(self, codes: np.ndarray, output_format: str) -> bytes:
        """See Pictures."""


class Api:
    """The routes. `digests` are those of the keys, see `limits.digest`; without any everybody may ask."""

    def __init__(
        self,
        config: ServeConfig,
        layout: ImageLayout,
        encode: PromptEncoder,
        patch: int,
        digests: Sequence[str],
        artist: Artist,
    ):
        self.config, self.layout, self.digests, self.artist = config, layout, digests, artist
        size = f"{layout.columns * patch}x{layout.rows * patch}"
        self.read = Reader(config, encode, size)
        self.answers = Answers(size, layout.tokens)
        self.admission = Admission(config.limits, len(digests))
        self.files = ExpiringFiles(config.url_seconds)
        self.metrics = Metrics(lambda: self.admission.images)
        self.model = {"id": config.name, "object": "model", "created": int(time.time()), "owned_by": "simplear-rl"}
        self.model |= {"size": size, "max_images": config.limits.images_per_request}

    def application(self) -> Starlette:
        """All routes, with errors in OpenAI's form."""
        middleware = []
        if not self.digests:
            # Another site's page whose name is made to mean this machine (DNS rebinding) still sends that name.
            hosts = ["localhost", "127.0.0.1", "[::1]", self.config.host]
            middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False))
        if self.config.cors_origins:
            origins, headers = self.config.cors_origins, ["authorization", "content-type"]
            methods = ["GET", "POST"]
            middleware.append(
                Middleware(CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=headers)
            )
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/health", self._health),
                Route("/metrics", self._answer(self._metrics)),
                Route("/v1/models", self._answer(self._models)),
                Route("/v1/models/{name}", self._answer(self._one_model)),
                Route("/v1/images/generations", self._answer(self._generate), methods=["POST"]),
                Route("/files/{name}", self._file),
            ],
            middleware=middleware,
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _http_error, Exception: _fault},  # type: ignore[dict-item]
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self.files.close()

    def _answer(self, route: Callable[[Request, str], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """A route for those who have a key, counted by the status of its answers."""

        async def counted(request: Request) -> Response:
            def count(status: int) -> None:
                self.metrics.requests.labels(request.scope["route"].path, status).inc()

            try:
                response = await route(request, authenticate(request.headers.get("authorization", ""), self.digests))
            except ApiError as error:
                response = error.response()
            except Exception:
                count(500)
                raise
            count(response.status_code)
            return response

        return counted

    async def _page(self, _: Request) -> Response:
        headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(PAGE.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)

    async def _health(self, _: Request) -> Response:
        if not self.artist.loaded():
            return ApiError(503, LOADING, headers={"Retry-After": "5"}).response()
        return JSONResponse({"status": "ok"})

    async def _metrics(self, _: Request, __: str) -> Response:
        return Response(generate_latest(self.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _models(self, _: Request, __: str) -> Response:
        return JSONResponse({"object": "list", "data": [self.model]})

    async def _one_model(self, request: Request, _: str) -> Response:
        name = request.path_params["name"]
        if name != self.config.name:
            raise ApiError(404, f"model {name!r}: this server has {self.config.name!r}", "model", "model_not_found")
        return JSONResponse(self.model)

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        content = self.files.get(name)
        if content is None:
            return ApiError(404, "there is no such file, or no longer").response()
        headers = {"X-Content-Type-Options": "nosniff"}
        return Response(content, media_type=f"image/{name.rpartition('.')[2]}", headers=headers)

    async def _generate(self, request: Request, key: str) -> Response:
        if not self.artist.loaded():
            raise ApiError(503, LOADING, headers={"Retry-After": "5"})
        with self.admission.enter(key) as entered:
            asked = self.read(await self._content(request))
            self.admission.admit(len(asked.images), key, entered)
            self._log(asked, key)
            user = f"{key}/{asked.body.user or ''}"
            if asked.body.stream:
                return _EventStream(self._events(asked, user), entered.pop_all())
            return JSONResponse(await self._images(asked, user, str(request.base_url)))

    async def _content(self, request: Request) -> bytes:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(400, "expected a body of the type application/json", code="invalid_json")
        content, most = b"", self.config.limits.body_bytes
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    content += part
                    if len(content) > most:
                        raise ApiError(413, f"the body has more than {most} bytes", code="body_too_large")
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {BODY_SECONDS} s") from None
        return content

    def _log(self, asked: Generation, key: str) -> None:
        prompts = f", prompts {asked.prompts!r}" if self.config.log_prompts else ""
        LOG.info("key %s, user %r: %d images%s", key[:8], asked.body.user, len(asked.images), prompts)

    async def _draw(self, asked: Generation, index: int, user: str) -> AsyncIterator[tuple[Progress, bytes]]:
        """An image's partial pictures and the whole one, with their codes. Raises ApiError."""
        start, seconds = time.monotonic(), self.config.limits.deadline_seconds
        stops = asked.partial_stops(self.layout)
        try:
            async for progress in self.artist.draw(asked.images[index], user, seconds, stops):
                async with asyncio.timeout(start + seconds - time.monotonic()):
                    picture = await self.artist.picture(progress.codes, asked.body.output_format)
                yield progress, picture
        except (LateError, TimeoutError):
            self.metrics.late.inc()
            raise ApiError(503, f"not drawn within {seconds:g} s", headers={"Retry-After": "10"}) from None
        except Exception:
            self.metrics.failed.inc()
            raise
        self.metrics.seconds.observe(time.monotonic() - start)

    async def _images(self, asked: Generation, user: str, base_url: str) -> dict[str, Any]:
        """The answer in one piece."""

        async def one(index: int) -> dict[str, Any]:
            async for progress, picture in self._draw(asked, index, user):
                whole = progress, picture
            if asked.body.response_format == "b64_json":
                return self.answers.image(asked, *whole)
            name = self.files.add(whole[1], asked.body.output_format)
            return self.answers.image(asked, *whole, url=f"{base_url}files/{name}")

        try:
            async with asyncio.TaskGroup() as group:  # who leaves takes the images along
                tasks = [group.create_task(one(index)) for index in range(len(asked.images))]
        except ExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        return self.answers.whole(asked, [task.result() for task in tasks])

    async def _events(self, asked: Generation, user: str) -> AsyncIterator[bytes]:
        """The answer as server-sent events; images side by side, told apart by `index`."""
        events: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def one(index: int) -> None:
            partial = 0
            try:
                async for progress, picture in self._draw(asked, index, user):
                    events.put_nowait(self.answers.event(asked, index, partial, progress, picture))
                    partial += 1
            except ApiError as error:
                events.put_nowait(self.answers.failure(error))
            except Exception:
                LOG.exception("an image of a stream failed")
                events.put_nowait(self.answers.failure(ApiError(500, "the image could not be drawn")))
            finally:
                events.put_nowait(None)

        tasks = [asyncio.create_task(one(index)) for index in range(len(asked.images))]
        try:
            left = len(tasks)
            while left:
                event = await events.get()
                if event is None:
                    left -= 1
                else:
                    yield event
        finally:
            for task in tasks:
                task.cancel()


class _EventStream(StreamingResponse):
    """Server-sent events; leaves the count of requests when it ends, also if it never began."""

    def __init__(self, events: AsyncIterator[bytes], entered: ExitStack):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.entered = entered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.entered:
            await super().__call__(scope, receive, send)


async def _http_error(_: Request, error: HTTPException) -> Response:
    messages = {404: "there is nothing at this path", 405: "this path knows another method"}
    return ApiError(error.status_code, messages.get(error.status_code, error.detail), headers=error.headers).response()


async def _fault(_: Request, __: Exception) -> Response:
    return ApiError(500, "the server has a fault; its log says which").response()
