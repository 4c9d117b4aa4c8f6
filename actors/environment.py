"""Environment variables of an actor's process."""

from simplear_rl.config.base import ActorsConfig
from simplear_rl.device import RESERVED


def actor_environment(actors: ActorsConfig) -> dict[str, str]:
    """What the process of each of these actors computes with."""
    # MKL_CBWR: the order of sums does not depend on where numbers lie in memory, or on what MKL sees of caches.
    environment = {"OMP_NUM_THREADS": str(actors.threads), "MKL_CBWR": "AUTO"}
    return environment | ({RESERVED: f"{actors.gpus:g}"} if actors.gpus else {})
