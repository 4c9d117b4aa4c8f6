"""A server's images per second and latency under load, beside what an engine of the same policy does by itself.

  python -m simplear_rl.serve --port 8000
  python -m simplear_rl.timings.serve --url http://127.0.0.1:8000 --model runs/demo/grpo/final

Both take turns, so that a busy machine slows both. The server has to be on this machine.
"""

import argparse
import asyncio
import itertools
import os
import time
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlsplit

import httpx
import torch

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling
from simplear_rl.rollout.vllm_engine import VllmEngine

PROMPTS = ["a red circle", "a blue square and a yellow cross", "three green triangles", "a cross left of a circle"]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST = 128  # requests at a time: what a server allows a key
WAVES = 6  # requests of each client


def session_of(clients: int) -> httpx.AsyncClient:
    """A session for so many clients at a time, with the server's key."""
    headers = {"Authorization": f"Bearer {os.environ.get('SIMPLEAR_API_KEY', 'none')}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    return httpx.AsyncClient(headers=headers, limits=limits, timeout=600)


def require_loopback(parser: argparse.ArgumentParser, url: str) -> None:
    """End with a message unless the server is on this machine."""
    if urlsplit(url).hostname not in LOOPBACK:
        parser.error(f"--url {url}: a load is put on servers of this machine alone")


async def load(url: str, clients: int, guidance_scale: float) -> tuple[float, list[float]]:
    """Images per second and the seconds of every request, from clients that ask again as soon as they are answered.

    The clock starts when as many are answered as there are clients, and all of them ask until it stops.
    """
    total, seeds = WAVES * clients, itertools.count()
    ends: list[float] = []
    seconds: list[float] = []
    enough = asyncio.Event()

    async def client(session: httpx.AsyncClient) -> None:
        while not enough.is_set():
            seed, start = next(seeds), time.perf_counter()
            body = {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, "guidance_scale": guidance_scale}
            (await session.post(f"{url}/v1/images/generations", json=body)).raise_for_status()
            ends.append(time.perf_counter())
            seconds.append(ends[-1] - start)
            if len(ends) >= total:
                enough.set()

    async with session_of(clients) as session:
        tasks = [asyncio.create_task(client(session)) for _ in range(clients)]
        # A client ends before only when it fails.
        await asyncio.wait([asyncio.create_task(enough.wait()), *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
    return (total - clients) / (ends[total - 1] - ends[clients - 1]), seconds[:total]


def own_rate(engine: VllmEngine, images: int, sampling: Sampling) -> float:
    """Images per second of an engine that draws so many at a time, WAVES - 1 times, as `load` counts them."""
    prompts = [Prompt(i, PROMPTS[i % len(PROMPTS)]) for i in range(images)]
    start = time.perf_counter()
    for step in range(WAVES - 1):
        list(engine.generate(Draw(prompts, 1, 0, step, sampling)))
    return (WAVES - 1) * images / (time.perf_counter() - start)


def main() -> None:
    """Print a line for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", type=Path, default=Path("runs/demo/grpo/final"), help="policy folder")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-concurrent", type=int, default=64, help="contexts of the engine, as the server's has")
    parser.add_argument("--threads", type=int, default=1, help="of the engine, as the server's has")
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    options = parser.parse_args()
    require_loopback(parser, options.url)
    if not all(1 <= clients <= MOST for clients in options.clients):
        parser.error(f"--clients: expected 1 to {MOST}")
    torch.set_num_threads(options.threads)
    engine = VllmEngine(options.model, EngineConfig(max_concurrent=options.max_concurrent, kv_cache_gib=1))
    sampling = Sampling(guidance_scale=options.guidance_scale)

    def ask(clients: int) -> tuple[float, list[float]]:
        try:
            return asyncio.run(load(options.url, clients, options.guidance_scale))
        except httpx.HTTPError as error:
            raise SystemExit(f"{options.url}: {error}") from error

    ask(max(options.clients))  # kernels are built for each number of rows
    own_rate(engine, max(options.clients), sampling)
    print("clients  served images/s  engine's own  ratio   p50 s   p95 s")
    for clients in options.clients:
        served, own, seconds = [], [], []
        for _ in range(options.repeats):
            own.append(own_rate(engine, clients, sampling))
            rate, times = ask(clients)
            served.append(rate)
            seconds += times
        ratio = median(a / b for a, b in zip(served, own, strict=True))
        marks = quantiles(seconds, n=20)
        print(
            f"{clients:7d} {median(served):16.2f} {median(own):13.2f} {ratio:6.2f} {marks[9]:7.2f} {marks[18]:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
