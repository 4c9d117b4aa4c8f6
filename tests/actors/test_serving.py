"""The server on Ray Serve: pictures come while they are drawn, lost replicas lose no image, a client may leave."""

import asyncio
import os
import signal
import socket
import subprocess
import sys

import httpx
import openai
import pytest
from ray import serve

from actors.serving import ServedArtist, application
from simplear_rl.config.base import PoolConfig
from simplear_rl.config.rollout import EngineConfig
from simplear_rl.config.serving import ServeConfig
from simplear_rl.errors import UserError
from simplear_rl.serve import serve as serve_command
from simplear_rl.serving.drawing import LateError

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def server(ray_cluster, world):
    """The address of a server with two engines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine = EngineConfig(
        type="transformers", max_concurrent=4, max_prompt_tokens=32, actors=PoolConfig(count=2, cpus=0.1)
    )
    config = ServeConfig(
        policy=world / "policy",
        tokenizer=world / "tokenizer",
        engine=engine,
        decoders=PoolConfig(cpus=0.1),
        port=port,
    )
    serve.start(http_options={"host": config.host, "port": config.port})
    serve.run(application(config), name="simplear", route_prefix="/")
    url = f"http://127.0.0.1:{port}"
    while httpx.get(f"{url}/health").status_code == 503:
        pass
    yield url
    serve.shutdown()


def test_a_cluster_that_serves_is_left_alone(server, world):
    with pytest.raises(UserError, match="serves already: simplear. End that with `serve shutdown`"):
        serve_command(ServeConfig(policy=world / "policy", tokenizer=world / "tokenizer", port=8766))
    assert httpx.get(f"{server}/health").status_code == 200


def client(url):
    return openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0, timeout=120)


async def queued(url):
    async with httpx.AsyncClient() as session:
        text = (await session.get(f"{url}/metrics")).text
    return float(text.partition("\nsimplear_queued_images ")[2].split()[0])


def test_a_stream_comes_in_pieces(server):
    async def main():
        stream = await client(server).images.generate(prompt=PROMPT, n=2, stream=True, partial_images=3)
        events = [event async for event in stream]
        whole = await client(server).images.generate(prompt=PROMPT, n=2, extra_body={"seed": events[-1].seed})
        complete = {e.index: e.b64_json for e in events if e.type == "image_generation.completed"}
        return [e.type for e in events], complete, [image.b64_json for image in whole.data]

    kinds, complete, whole = asyncio.run(main())
    assert kinds.count("image_generation.partial_image") == 6 and kinds[-1] == "image_generation.completed"
    assert [complete[0], complete[1]] == whole


def test_a_lost_engine_loses_no_image(server):
    async def main():
        images = client(server).images
        asked = [{"prompt": PROMPT, "n": 3, "extra_body": {"seed": seed}} for seed in range(8)]
        expected = [await images.generate(**request) for request in asked]
        handle = serve.get_deployment_handle("Engine", "simplear")
        process = await handle.ready.remote()

        async def streamed(request):
            events = [event async for event in await images.generate(**request, stream=True, partial_images=2)]
            complete = {e.index: e.b64_json for e in events if e.type == "image_generation.completed"}
            return [complete[index] for index in sorted(complete)]

        tasks = [asyncio.create_task(images.generate(**request)) for request in asked]
        streams = [asyncio.create_task(streamed(request)) for request in asked[:4]]
        while await queued(server) < 12:
            await asyncio.sleep(0.01)
        os.kill(process, signal.SIGKILL)
        answers = await asyncio.gather(*tasks)
        whole = [[image.b64_json for image in answer.data] for answer in (*expected, *answers)]
        return whole, await asyncio.gather(*streams)

    whole, streamed = asyncio.run(main())
    assert whole[:8] == whole[8:] and streamed == whole[:4]


def test_a_client_that_leaves_takes_its_images_along(server):
    async def main():
        async with httpx.AsyncClient(timeout=60) as session:
            for stream in False, True:
                body = {"prompt": PROMPT, "n": 16, "stream": stream}
                task = asyncio.create_task(session.post(f"{server}/v1/images/generations", json=body))
                while await queued(server) < 16:
                    await asyncio.sleep(0.01)
                task.cancel()
                while await queued(server):
                    await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_others_may_not_reach_a_server_without_a_key(world, monkeypatch):
    monkeypatch.delenv("SIMPLEAR_API_KEY", raising=False)
    config = ServeConfig(policy=world / "policy", tokenizer=world / "tokenizer", host="0.0.0.0")
    with pytest.raises(UserError, match="set SIMPLEAR_API_KEY"):
        application(config)
    monkeypatch.setenv("SIMPLEAR_API_KEY", "a,b")
    assert application(config)


class Silent:
    """A deployment whose replicas are all lost: nothing is ever answered."""

    def __init__(self):
        self.open = []
        self.whole = self.parts = self.ready = self.picture = self

    def options(self, stream):
        return self

    def remote(self, *arguments):
        call = asyncio.get_running_loop().create_future()
        self.open.append(call)
        return call


class SilentParts(Silent):
    def __init__(self):
        super().__init__()
        self.closed = 0

    def remote(self, *arguments):
        return self

    async def __anext__(self):
        await asyncio.sleep(3600)

    def cancel(self):
        self.closed += 1


def test_an_image_that_no_replica_takes_is_late():
    async def main():
        silent = Silent()
        artist = ServedArtist(silent, silent)
        with pytest.raises(LateError):
            await anext(artist.draw(None, "user", 0.05, ()))
        assert any(call.cancelled() for call in silent.open) and not artist.loaded()
        parts = artist.parts = SilentParts()
        with pytest.raises(LateError):
            await anext(artist.draw(None, "user", 0.05, (8,)))
        assert parts.closed == 1

    asyncio.run(main())


@pytest.mark.slow
def test_sigterm_ends_the_command_quietly(world):
    command = [sys.executable, "-m", "simplear_rl.serve", f"policy={world}/policy", f"tokenizer={world}/tokenizer"]
    values = ["engine.type=transformers", "engine.actors={count: 1, cpus: 0.1}", "decoders={cpus: 0.1}", "port=8765"]
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_worker_niceness": "0"}
    with subprocess.Popen([*command, *values], stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if "Ctrl-C ends it" in line:
                process.terminate()
    assert process.returncode == 0
