"""A place on the cluster's nodes for every actor."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from simplear_rl.config.base import ActorsConfig
from simplear_rl.errors import UserError


@dataclass
class Node:
    """A machine, and what of it is still free."""

    cpus: float
    gpus: int
    gpu_memory: float | None = None  # bytes of each GPU, if known
    free_cpus: float = field(init=False)
    free_gpus: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.free_cpus, self.free_gpus = self.cpus, [1.0] * self.gpus

    def take(self, config: ActorsConfig) -> list[int] | None:
        """Numbers of the GPUs that an actor gets here; None if there is no room for it."""
        enough = 1e-9  # fractions are sums of floats
        whole = config.gpus >= 1
        share = 1.0 if whole else config.gpus
        having = [i for i, free in enumerate(self.free_gpus) if free > share - enough]
        having.sort(key=lambda i: self.free_gpus[i])  # stable; GPUs that are shared already come first
        number = int(config.gpus) if whole else int(config.gpus > 0)
        if self.free_cpus < config.cpus - enough or len(having) < number:
            return None
        self.free_cpus -= config.cpus
        for i in having[:number]:
            self.free_gpus[i] -= share
        return having[:number]


@dataclass(frozen=True)
class Place:
    """Where an actor goes."""

    role: str
    node: int
    gpus: list[int]


def place(roles: dict[str, ActorsConfig], nodes: list[Node], colocated: Sequence[str] = ()) -> list[Place]:
    """A place for every actor, on few nodes, the largest first (Ray's strategy PACK may choose another one).

    Actors of equal number of the `colocated` roles are at the same place.

    Raises:
        UserError: an actor is left over; names the keys to change.
    """
    for role, config in roles.items():
        if config.gpus > 1 and config.gpus % 1:
            raise UserError(f"{role}.gpus ({config.gpus:g}): Ray reserves fractions below 1 and whole numbers")
    bundles = [([role], config) for role, config in roles.items() if role not in colocated]
    if colocated:
        parts = [roles[role] for role in colocated]
        cpus, gpus = sum(part.cpus for part in parts), sum(part.gpus for part in parts)
        bundles.append((list(colocated), ActorsConfig(count=parts[0].count, cpus=cpus, gpus=gpus)))
    actors = [(names, config) for names, config in bundles for _ in range(config.count)]
    actors.sort(key=lambda actor: (-actor[1].gpus, -actor[1].cpus))
    places: list[Place] = []
    for names, config in actors:
        taken = ((i, node.take(config)) for i, node in enumerate(nodes))
        found = next(((i, gpus) for i, gpus in taken if gpus is not None), None)
        if not found:
            rows = ", ".join(f"{r} {c.count} x ({c.gpus:g} GPUs, {c.cpus:g} CPUs)" for r, c in roles.items())
            have = ", ".join(f"{node.gpus} GPUs and {node.cpus:g} CPUs" for node in nodes)
            keys = ", ".join(f"{r}.{key}" for r in roles for key in ("count", "gpus", "cpus"))
            raise UserError(
                f"no node has room for {' and '.join(names)}-{sum(p.role == names[0] for p in places)}: the actors ask "
                f"for {rows}; "
                f"the nodes have {have}. Lower {keys}, or add nodes"
            )
        places += [Place(role, *found) for role in names]
    return places
