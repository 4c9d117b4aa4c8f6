"""Where actors run: one placement group per stage, telling names."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import ray
from ray.actor import ActorClass, ActorHandle
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.connection import connect, require_workers
from actors.environment import actor_environment
from actors.pool import Pool
from actors.supervision import Heartbeat, is_behind, lost_actor
from simplear_rl.config.base import ActorsConfig, FaultsConfig, PoolConfig
from simplear_rl.errors import ActorLostError, UserError, all_faults


def cluster_nodes() -> list[tuple[float, int]]:
    """CPUs and GPUs of every node of the cluster that `connect` joins."""
    connect()
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(node.get("CPU", 0), int(node.get("GPU", 0))) for node in resources]


class Stage:
    """The actors of one stage, placed together and ended together. Use as a context manager.

    Args:
        name: of the stage; actors are called "<name>/<role>-<i>" in the dashboard and in the logs.
        roles: how many actors of each role and what they occupy, by configuration key.
        faults: how often actors may be restarted, and their heartbeat.
        colocated: roles, as many actors of each, whose actors of equal number share a GPU or, without GPUs, a node.

    Raises:
        UserError: the cluster is too small; says what was asked, what there is and which keys to change.
        ActorLostError: on leaving, when an actor or an object that Ray does not bring back was the reason.
    """

    def __init__(
        self,
        name: str,
        roles: dict[str, ActorsConfig],
        faults: FaultsConfig | None = None,
        colocated: Sequence[str] = (),
    ):
        connect()
        check_fits(roles, ray.cluster_resources())
        self.name, self.roles, self.faults = name, roles, faults or FaultsConfig()
        self.actors: dict[str, ActorHandle] = {}
        self.launched: dict[str, ActorHandle] = {}
        self.ended = False
        self.heartbeat = Heartbeat(self.faults.heartbeat_seconds)
        bundles: list[dict[str, float]] = []
        self.bundles_of_role: dict[str, range] = {}
        for role, config in roles.items():
            first = self.bundles_of_role.get(colocated[0]) if role in colocated else None
            if first:  # the actors of a bundle with one GPU all get that one
                self.bundles_of_role[role] = first
                for i in first:
                    bundles[i] = {k: bundles[i].get(k, 0) + n for k, n in _bundle(config).items()}
            else:
                self.bundles_of_role[role] = range(len(bundles), len(bundles) + config.count)
                bundles += [_bundle(config)] * config.count
        self.placement = placement_group(bundles, strategy="PACK", name=name)
        while not self.placement.wait(timeout_seconds=20):
            free = {resource: ray.available_resources().get(resource, 0) for resource in ("CPU", "GPU")}
            print(f"{name}: waiting for {bundles}; the cluster has {free} free at the moment", flush=True)

    def launch(self, role: str, actor: ActorClass, *args: Any, max_restarts: int | None = None) -> list[ActorHandle]:
        """Start all actors of `role`; each gets its name and index, then `args`.

        Ray restarts one that dies, where it was or on another node, `max_restarts` times (faults.max_restarts).
        """
        restarts = self.faults.max_restarts if max_restarts is None else max_restarts
        started = []
        for i, bundle in enumerate(self.bundles_of_role[role]):
            strategy = PlacementGroupSchedulingStrategy(self.placement, placement_group_bundle_index=bundle)
            started.append(self._start(role, i, strategy, restarts, actor, args))
            self.launched[self._name(role, i)] = started[-1]
        return started

    def pool(self, role: str, actor: ActorClass, *args: Any) -> Pool:
        """Launch all actors of `role`, and ask for those that may join later (max_count)."""
        config = self.roles[role]
        most = config.max_count if isinstance(config, PoolConfig) else None
        extra = {
            self._name(role, i): partial(self._start, role, i, "DEFAULT", 0, actor, args)
            for i in range(config.count, most or config.count)
        }
        return Pool(self.launch(role, actor, *args), extra)

    def _name(self, role: str, i: int) -> str:
        return f"{self.name}/{role.removesuffix('.actors')}-{i}"

    def _start(
        self, role: str, i: int, strategy: Any, restarts: int, actor: ActorClass, args: tuple[Any, ...]
    ) -> ActorHandle:
        config, name = self.roles[role], self._name(role, i)
        if self.ended:  # a thread that still waited for an extra actor asks for another one
            raise RuntimeError(f"{name}: the stage has ended")
        handle = actor.options(
            name=name,
            num_cpus=config.cpus,
            num_gpus=config.gpus,
            scheduling_strategy=strategy,
            runtime_env={"env_vars": actor_environment(config)},
            max_restarts=restarts,
        ).remote(name, i, *args)
        self.actors[name] = handle
        self.heartbeat.watch(handle, name, restarts > 0)
        return handle

    def require_workers(self) -> None:
        """Wait until every actor launched so far has a process. Raises UserError if Ray does not start any."""
        require_workers(self.launched)

    def ready(self) -> None:
        """Wait until every actor launched so far is built. Raises the UserError of one that cannot be."""
        self.require_workers()
        ray.get([actor.ready.remote() for actor in self.launched.values()])

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.ended = True
        self.heartbeat.stop()
        lost = lost_actor(error)
        explained = self._explain(lost) if lost else None  # before all of them are dead
        for actor in self.actors.values():
            ray.kill(actor)
        remove_placement_group(self.placement)
        if explained:
            raise explained from error

    def _explain(self, lost: RayError) -> ActorLostError:
        for name, actor in self.actors.items():
            if is_behind(actor, lost):
                return ActorLostError(f"{self.heartbeat.place(name)} is lost: {lost}", "/learner-" in name)
        return ActorLostError(f"an object is lost with the node that held it: {lost}", learner=True)


def _bundle(config: ActorsConfig) -> dict[str, float]:
    return {"CPU": config.cpus} | ({"GPU": config.gpus} if config.gpus else {})


def check_fits(roles: dict[str, ActorsConfig], available: dict[str, float]) -> None:
    """Raise UserError, naming the keys to change, if the roles ask for more CPUs or GPUs than there are."""

    def check(resource: str, key: str) -> None:
        asked = {role: config.count * getattr(config, key) for role, config in roles.items()}
        if sum(asked.values()) > available.get(resource, 0) + 1e-6:  # fractions are sums of floats
            shares = ", ".join(
                f"{role} {config.count} x {getattr(config, key):g}" for role, config in roles.items() if asked[role]
            )
            keys = ", ".join(f"{role}.count and {role}.{key}" for role in roles if asked[role])
            raise UserError(
                f"the actors ask for {sum(asked.values()):g} {resource}s ({shares}), the cluster has "
                f"{available.get(resource, 0):g}: lower {keys}, or add nodes"
            )

    all_faults(partial(check, "CPU", "cpus"), partial(check, "GPU", "gpus"))
