"""What clients of a server see while many ask too much, while an engine is killed, and what its memory does.

  python -m simplear_rl.serve --port 8000 engine.actors.count=2
  python -m simplear_rl.timings.serve_faults --url http://127.0.0.1:8000

Overload: all images are asked for at once, and again after Retry-After where the answer is 429. Then clients ask for
one image after the other, and halfway an engine is killed; every picture is compared with the one that its seed had
before. The server has to be on this machine, and the only one there.
"""

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import psutil

from simplear_rl.timings.serve import PROMPTS, require_loopback, session_of

REPLICA = "ray::ServeReplica:"
ENGINE = ":Engine"
WINDOW = 10.0  # seconds over which a rate is measured
RECOVERED = 0.9  # of the rate before


class Clients:
    """Asks for the image of a seed, and keeps what came of it."""

    def __init__(self, url: str, session: httpx.AsyncClient):
        self.url, self.session = url, session
        self.statuses: Counter[int] = Counter()
        self.pictures: dict[int, str] = {}  # of seeds, as they were first drawn
        self.different: set[int] = set()  # seeds that gave another picture later
        self.without_retry_after = 0
        self.ends: list[float] = []
        self.longest = 0.0

    async def ask(self, seed: int) -> None:
        """Until it is drawn; a server that is full says when to come back."""
        start = time.monotonic()
        body = {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed}
        while True:
            answer = await self.session.post(f"{self.url}/v1/images/generations", json=body)
            self.statuses[answer.status_code] += 1
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                break
            self.without_retry_after += "Retry-After" not in answer.headers
            await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
        if answer.status_code == httpx.codes.OK:
            picture = answer.json()["data"][0]["b64_json"]
            if self.pictures.setdefault(seed, picture) != picture:
                self.different.add(seed)
        self.ends.append(time.monotonic())
        self.longest = max(self.longest, self.ends[-1] - start)

    async def ask_for(self, seeds: Iterator[int], clients: int) -> None:
        """So many clients, each of which asks for one image after the other."""

        async def client() -> None:
            for seed in seeds:  # all take from the same
                await self.ask(seed)

        await asyncio.gather(*(client() for _ in range(clients)))

    def rate(self, until: float) -> float:
        """Answers per second in the window before a time."""
        return sum(until - WINDOW < end <= until for end in self.ends) / WINDOW


def replicas(name: str = "") -> list[psutil.Process]:
    """The server's actors, by the names that Ray gives its processes."""
    found = psutil.process_iter(["cmdline"])
    titles = [(process, " ".join(process.info["cmdline"] or [])) for process in found]
    return [process for process, title in titles if title.startswith(REPLICA) and name in title]


def mebibytes() -> float:
    """Memory of the server's actors that nothing else shares."""
    return sum(process.memory_full_info().uss for process in replicas()) / 2**20


async def overload(clients: Clients, images: int) -> None:
    """All at once."""
    await asyncio.gather(*(clients.ask(seed) for seed in range(images)))
    print(
        f"{images} at once: answers {dict(clients.statuses)}, {clients.without_retry_after} of 429 had no Retry-After"
    )


async def memory(clients: Clients, images: int, at_a_time: int) -> None:
    """In four parts."""
    used = [mebibytes()]
    for _ in range(4):
        await clients.ask_for(iter(range(images // 4)), at_a_time)
        used.append(mebibytes())
    print(f"memory over {images} images, MiB: {', '.join(f'{mib:.0f}' for mib in used)}")


async def killed(clients: Clients, images: int, at_a_time: int) -> None:
    """An engine ends while half of the images are still to be drawn."""
    seeds, kill = iter(range(images)), images // 2
    asking = asyncio.create_task(clients.ask_for(seeds, at_a_time))
    done = len(clients.ends)
    while len(clients.ends) < done + kill and not asking.done():
        await asyncio.sleep(0.1)
    at, before = time.monotonic(), clients.rate(time.monotonic())
    victim = replicas(ENGINE)[0]
    victim.kill()
    await asking
    later = [end for end in clients.ends if end > at + WINDOW]
    again = next((end - at for end in later if clients.rate(end) >= RECOVERED * before), None)
    recovered = "not before the end" if again is None else f"{again:.0f} s later"
    print(f"engine {victim.pid} killed at {before:.2f} images/s; that rate again, over {WINDOW:.0f} s: {recovered}")


async def measure(options: argparse.Namespace) -> None:
    """One after the other, on the same clients."""
    async with session_of(options.clients) as session:
        clients = Clients(options.url, session)
        await overload(clients, options.at_once)
        await memory(clients, options.images, options.clients)
        await killed(clients, options.images // 4, options.clients)
    others = {status: n for status, n in clients.statuses.items() if status not in (httpx.codes.OK, 429)}
    print(f"requests that failed: {others or 'none'}; longest {clients.longest:.1f} s")
    print(f"pictures that differ from those of the same seed before: {len(clients.different)}")


def main() -> None:
    """Print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--images", type=int, default=2000, help="whose memory is looked at")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--at-once", type=int, default=400, help="more than limits.requests_per_key")
    options = parser.parse_args()
    require_loopback(parser, options.url)
    asyncio.run(measure(options))


if __name__ == "__main__":
    main()
