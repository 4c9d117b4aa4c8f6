"""Ways to lay GRPO's roles out on GPUs, and the one that costs least.

Two kinds are compared. *Shared*: every GPU holds a learner rank and an engine, which hands weights over in place, and
a reward actor and a reference besides. *Separate*: learner ranks and engines have GPUs of their own, and one GPU is
the reward's and the reference's. A learner rank has whole minibatches of whole groups: the ranks divide the prompts of
a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from simplear_rl.config.stages import GrpoConfig
from simplear_rl.plan import memory
from simplear_rl.plan.speed import Speed
from simplear_rl.plan.time import ENGINE, LEARNER, REFERENCE, REWARD, Crowding, StepTime, grpo_step
from simplear_rl.policy.sizes import PolicySizes
from simplear_rl.rollout.capacity import GIB, gib_for

BATCHES = (1, 2, 4)  # that an engine's images are drawn in: the first number whose cache fits


@dataclass(frozen=True)
class Layout:
    """A configuration whose actors are counted anew, and what its step takes."""

    config: GrpoConfig
    shared: bool
    gpus: int
    step: StepTime

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return self.config.steps * self.step.seconds / 3600

    def __str__(self) -> str:
        engines, learners = self.config.rollout.engine.actors.count, self.config.learner.actors.count
        where = f"{self.gpus} GPU{'s' * (self.gpus > 1)}"
        roles = f"{engines} engine{'s' * (engines > 1)}, {learners} learner rank{'s' * (learners > 1)}"
        at_once = self.config.rollout.engine.max_concurrent
        return (
            f"{where} {'shared by all roles' if self.shared else 'of which reward and reference have one'} ({roles}, "
            f"max_concurrent {at_once}): {self.step.seconds:.3g} s a step, {self.hours:.3g} h, "
            f"{self.hours * self.gpus:.3g} GPU-hours"
        )


def layouts(config: GrpoConfig, decoder: PolicySizes, speed: Speed, gpus: int, gpus_per_node: int) -> Iterator[Layout]:
    """All that fit into the memory of so many GPUs of one kind."""
    prompts = config.rollout.prompts_per_step
    ranks = [n for n in range(1, prompts + 1) if prompts % (n * config.algorithm.minibatches) == 0]
    # One engine more helps only where the busiest has fewer prompts.
    engines = sorted({ceil(prompts / most) for most in range(1, prompts + 1)})
    choices = [(n, n, True, n) for n in ranks] + [(e, r, False, e + r + 1) for e in engines for r in ranks]
    for engine_count, learner_count, shared, needed in choices:
        if needed > gpus:
            continue
        in_batches = (_counted(config, decoder, engine_count, learner_count, shared, n) for n in BATCHES)
        counted = next((one for one in in_batches if _fits(one, decoder, speed.device.memory, shared)), None)
        if not counted or counted.images_per_minibatch % counted.images_per_pass:
            continue
        crowding = Crowding({}, True, training_shared=shared, nodes=ceil(needed / gpus_per_node))
        yield Layout(counted, shared, needed, grpo_step(counted, decoder, lambda _: speed, crowding))


def _counted(
    config: GrpoConfig, decoder: PolicySizes, engines: int, learners: int, shared: bool, batches: int
) -> GrpoConfig:
    """The configuration with so many actors, and engines that draw their images in so many batches."""
    rollout = config.rollout
    guided = 2 if rollout.guidance_scale != 1 else 1
    images = ceil(rollout.prompts_per_step / engines) * rollout.samples_per_prompt
    contexts = ceil(images / batches) * guided
    engine = rollout.engine.model_copy(
        update={
            "actors": rollout.engine.actors.model_copy(update={"count": engines}),
            "max_concurrent": max(2, contexts),
            "kv_cache_gib": gib_for(contexts, decoder, rollout.engine),
        }
    )
    scorers = engines if shared else 1
    return config.model_copy(
        update={
            "learner": config.learner.model_copy(
                update={"actors": config.learner.actors.model_copy(update={"count": learners})}
            ),
            "rollout": rollout.model_copy(update={"engine": engine, "broadcast": "ipc" if shared else "object_store"}),
            "reward": config.reward.model_copy(
                update={"actors": config.reward.actors.model_copy(update={"count": scorers})}
            ),
            "reference": config.reference.model_copy(update={"count": scorers}),
        }
    )


def _fits(config: GrpoConfig, decoder: PolicySizes, room_gib: float, shared: bool) -> bool:
    roles = memory.grpo_roles(config, decoder)
    needed = {role: sum(parts.values()) + memory.PROCESS for role, parts in roles.items() if parts}
    scoring = needed[REWARD] + needed.get(REFERENCE, 0)
    apart = needed[LEARNER], needed[ENGINE], scoring
    return (sum if shared else max)(apart) <= memory.USABLE * room_gib * GIB
