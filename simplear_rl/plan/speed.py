"""How long a device takes for a piece of work: what the device can do at most, and what of that is assumed.

Three parts are added up: starting operators, memory traffic, arithmetic. `Assumptions` says where its numbers are from.
A file that `timings.step` wrote replaces them by what was measured: the device, and for every phase a factor, measured
seconds / seconds that these rules give for the same phase.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from simplear_rl.config.base import Count, Positive, Section
from simplear_rl.errors import UserError
from simplear_rl.gpus import GPUS, Device, gpu_name

STARTING, MEMORY, ARITHMETIC = LIMITS = "starting operators", "memory bandwidth", "arithmetic"
# One core of a CPU, as `timings.step` found it on a server with AVX-512. Other cores take up to several times as long.
CPU_CORE = Device(bandwidth=10e9, bfloat16=110e9, float32=110e9, memory=0, link=2e9)


@dataclass(frozen=True)
class Assumptions:
    """What the data sheets do not say. Fitted to one H100 (docs/timings.md), but for the transports."""

    replayed: float = 3.1e-6  # seconds for an operator of a CUDA graph to begin
    started: float = 20e-6  # seconds for an operator that Python starts
    bandwidth: float = 0.87  # share of the memory's bandwidth
    arithmetic: float = 0.6  # share of the operations per second
    vllm_step: float = 1.0e-3  # seconds of vLLM's Python for a step
    vllm_context: float = 27e-6  # and for each context in it
    # Bytes per second of weights on their way to the engines, checksums included. CUDA IPC was measured on an H100,
    # the object store on two cores of a CPU; NCCL is an allowance.
    object_store: float = 1e9
    collective: float = 20e9
    ipc: float = 10e9
    network: float = 25e9  # bytes/s of each GPU between nodes: an allowance, a card of 200 Gbit/s


# Python starts every operator there, none is replayed.
ON_CPU = Assumptions(started=10e-6, replayed=10e-6, vllm_step=3e-3)


@dataclass(frozen=True)
class Work:
    """What a phase asks of a device."""

    started: float = 0  # operators that Python starts, one after the other
    bytes: float = 0  # of memory traffic
    flops: float = 0
    replayed: float = 0  # operators that a CUDA graph starts
    waiting: float = 0  # seconds of Python besides

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(value * times for value in vars(self).values()))


@dataclass(frozen=True)
class Speed:
    """A device and what it makes of work."""

    device: Device
    gpu: bool = True
    assumptions: Assumptions = Assumptions()
    factors: Mapping[str, float] = field(default_factory=dict)  # by phase

    def parts(self, phase: str, work: Work, dtype: str) -> dict[str, float]:
        """Seconds by LIMITS."""
        a, factor = self.assumptions, self.factors.get(phase, 1.0)
        starting = work.started * a.started + work.replayed * a.replayed + work.waiting
        memory = work.bytes / (a.bandwidth * self.device.bandwidth)
        arithmetic = work.flops / (a.arithmetic * self.device.flops(dtype))
        return dict(zip(LIMITS, (factor * starting, factor * memory, factor * arithmetic), strict=True))

    def seconds(self, phase: str, work: Work, dtype: str) -> float:
        """Their sum."""
        return sum(self.parts(phase, work, dtype).values())


def on_cpu(threads: int) -> Speed:
    """So many cores of a CPU."""
    core = CPU_CORE
    device = Device(threads * core.bandwidth, threads * core.bfloat16, threads * core.float32, 0, core.link)
    return Speed(device, gpu=False, assumptions=ON_CPU)


class Measured(Section):
    """The file that `timings.step --output` writes."""

    name: str  # of the device
    gpu: bool
    threads: Count  # that computed, on a CPU
    bandwidth: Positive  # see Device
    float32: Positive
    bfloat16: Positive
    started: Positive  # see Assumptions
    replayed: Positive
    command: str  # what was measured
    seconds: dict[str, Positive]  # by phase
    factors: dict[str, Positive]  # by phase: measured / planned without this file

    def speed(self, threads: int | None = None) -> Speed:
        """The device as it was measured or, of a CPU, with so many threads."""
        known, more = GPUS.get(gpu_name(self.name) or "", CPU_CORE), (threads or self.threads) / self.threads
        device = replace(
            known, bandwidth=more * self.bandwidth, bfloat16=more * self.bfloat16, float32=more * self.float32
        )
        operators = replace(Assumptions() if self.gpu else ON_CPU, started=self.started, replayed=self.replayed)
        return Speed(device, self.gpu, operators, self.factors)


def read_measured(file: Path) -> Measured:
    """Raises UserError if this is no file of `timings.step --output`."""
    try:
        return Measured.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{file}: expected a file of `python -m simplear_rl.timings.step --output`: {error}") from None
