"""What --dry-run says of time: seconds of a step, hours of the run, the bottleneck, who waits, the cheapest layout."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from simplear_rl.config.base import ActorsConfig
from simplear_rl.config.dpo import DpoConfig
from simplear_rl.config.stages import GrpoConfig, StageConfig, SupervisedConfig
from simplear_rl.gpus import GPUS, gpu_name
from simplear_rl.plan.layouts import layouts
from simplear_rl.plan.places import Node, Place
from simplear_rl.plan.speed import Speed, on_cpu, read_measured
from simplear_rl.plan.time import (
    ENGINE,
    LEARNER,
    REFERENCE,
    REWARD,
    Crowding,
    StepTime,
    dpo_step,
    grpo_step,
    supervised_step,
)
from simplear_rl.policy.sizes import PolicySizes
from simplear_rl.rollout.capacity import GIB


def print_hours(
    config: SupervisedConfig | GrpoConfig | DpoConfig,
    decoder: PolicySizes,
    places: Sequence[Place],
    nodes: Sequence[Node],
) -> None:
    """Print the plan of time of a stage whose actors have these places."""
    on_gpu = any(actors.gpus for actors in config.roles.values())
    gpu, source = _gpu(config) if on_gpu else (None, "assumed: cores of a server with AVX-512")
    measured = read_measured(config.plan.measured) if config.plan and config.plan.measured else None
    if measured and bool(measured.gpu) == on_gpu:
        source = f"measured: {measured.name}, {measured.command}"
        gpu = measured.speed() if on_gpu else None
    if on_gpu and not gpu:
        print("time     not planned: set plan.gpu, see simplear_rl/gpus.py, or plan.measured")
        return

    def speeds(role: str) -> Speed:
        actors = config.roles[role]
        if actors.gpus and gpu:
            return gpu
        return measured.speed(actors.threads) if measured and not measured.gpu else on_cpu(actors.threads)

    used = {(place.node, number) for place in places for number in place.gpus}
    learner_nodes = len({place.node for place in places if place.role == LEARNER})
    if isinstance(config, SupervisedConfig):
        step = supervised_step(config, decoder, speeds(LEARNER), learner_nodes)
    elif isinstance(config, DpoConfig):
        step = dpo_step(config, decoder, speeds, _crowding(config.roles, places, learner_nodes))
    else:
        step = grpo_step(config, decoder, speeds, _crowding(config.roles, places, learner_nodes))
    _print_step(config, step, len(used), source)
    if isinstance(config, GrpoConfig) and gpu and used:
        _print_layouts(config, decoder, gpu, nodes)


def _print_layouts(config: GrpoConfig, decoder: PolicySizes, gpu: Speed, nodes: Sequence[Node]) -> None:
    room = min((node.gpu_memory for node in nodes if node.gpu_memory), default=gpu.device.memory * GIB) / GIB
    smallest = replace(gpu, device=replace(gpu.device, memory=room))
    found = list(layouts(config, decoder, smallest, sum(node.gpus for node in nodes), max(node.gpus for node in nodes)))
    if found:
        cheapest = min(found, key=lambda one: one.hours * one.gpus)
        fastest = min(found, key=lambda one: (one.hours, one.gpus))
        print(f"layouts  fewest GPU-hours{' and hours' * (cheapest is fastest)}: {cheapest}")
        if cheapest is not fastest:
            print(f"         fewest hours: {fastest}")


def _gpu(config: StageConfig) -> tuple[Speed | None, str]:
    """The GPU that the stage runs on, if any is known, and where that is from."""
    if config.plan and config.plan.gpu:
        return Speed(GPUS[config.plan.gpu]), f"assumed: {config.plan.gpu} (plan)"
    name = gpu_name(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return (Speed(GPUS[name]), f"assumed: {name}") if name else (None, "")


def _crowding(roles: Mapping[str, ActorsConfig], places: Sequence[Place], nodes: int) -> Crowding:
    on = {role: Counter((place.node, *place.gpus[:1]) for place in places if place.role == role) for role in roles}
    crowd = {role: max(count.values()) for role, count in on.items() if roles[role].gpus}

    def places_of(role: str) -> set[tuple[int, ...]]:
        return set(on.get(role, ()))

    def share(one: str, other: str) -> bool:
        both = [role for role in (one, other) if role in roles]
        return all(not roles[role].gpus for role in both) or bool(places_of(one) & places_of(other))

    return Crowding(crowd, share(REWARD, REFERENCE), share(ENGINE, LEARNER), nodes)


def _print_step(config: StageConfig, step: StepTime, gpus: int, source: str) -> None:
    phases = ", ".join(f"{phase} {step.of(phase):.3g}" for phase in step.phases)
    print(f"time     {step.seconds:.3g} s a step: {phases}; {source}")
    phase, limit = step.bottleneck
    hours = config.steps * step.seconds / 3600
    cost = f", {hours * gpus:,.3g} GPU-hours on {gpus} GPU{'s' * (gpus > 1)}" if gpus else ""
    print(f"hours    {hours:,.3g} for {config.steps:,} steps{cost}; bottleneck: {phase}, by its {limit}")
    if isinstance(config, GrpoConfig | DpoConfig):
        waits = [role for role in (ENGINE, REWARD, REFERENCE, LEARNER) if role in config.roles]
        print("idle     " + ", ".join(f"{role} {step.idle(role):.0%}" for role in waits) + " of a step")
