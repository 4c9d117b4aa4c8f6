"""The seconds of a step, phase by phase, and which role waits for which."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

from simplear_rl.config.dpo import DpoConfig
from simplear_rl.config.learner import LearnerConfig
from simplear_rl.config.rewards import RewardConfig
from simplear_rl.config.rollout import RolloutConfig
from simplear_rl.config.stages import GrpoConfig, SupervisedConfig
from simplear_rl.plan import memory, work
from simplear_rl.plan.speed import Speed
from simplear_rl.policy.sizes import BYTES, PolicySizes
from simplear_rl.rollout.capacity import images_at_once

LINKS = "links"  # between GPUs, or by way of the host
PIXELS = 256  # of a code: 16 x 16
CAPTION = 100  # tokens of a caption in pretraining and SFT, on average: an allowance
LEARNER, ENGINE, REWARD, REFERENCE = "learner.actors", "rollout.engine.actors", "reward.actors", "reference"
Seconds = dict[str, float]  # by what limits them
Speeds = Callable[[str], Speed]  # by role


@dataclass(frozen=True)
class Crowding:
    """How the actors share GPUs."""

    actors: Mapping[str, int]  # of a role that share one, by role; 1 where a role is left out
    scoring_shared: bool = False  # whether a reward actor and the reference share one, or all compute on the same CPUs
    training_shared: bool = False  # the same of an engine and a learner
    nodes: int = 1


@dataclass(frozen=True)
class StepTime:
    """A step: its phases one after the other, but for scoring and reference, which may overlap.

    With `rollout.ahead` the rest overlaps with drawing, unless both have the same GPUs.
    """

    phases: Mapping[str, Seconds]
    seconds: float

    def of(self, phase: str) -> float:
        """Seconds of one phase."""
        return sum(self.phases[phase].values())

    @property
    def bottleneck(self) -> tuple[str, str]:
        """The longest phase, and what limits it."""
        phase = max(self.phases, key=self.of)
        return phase, max(self.phases[phase], key=lambda part: self.phases[phase][part])

    def idle(self, role: str) -> float:
        """Share of the step in which a role waits."""
        busy = {LEARNER: ("update",), ENGINE: ("rollout",), REWARD: ("pictures", "reward"), REFERENCE: ("reference",)}[
            role
        ]
        return 1 - sum(self.of(phase) for phase in busy if phase in self.phases) / self.seconds


def _drawing(
    rollout: RolloutConfig,
    reward: RewardConfig,
    pictures_cost: bool,
    decoder: PolicySizes,
    speeds: Speeds,
    crowding: Crowding,
) -> dict[str, Seconds]:
    """Drawing and scoring the images of a step; `pictures_cost`: the visual tokenizer is not the miniature one."""
    engine, samples = rollout.engine, rollout.samples_per_prompt
    guided, prompt = rollout.guidance_scale != 1, engine.max_prompt_tokens
    contexts = 2 if guided else 1

    def prompts_each(actors: int) -> int:
        return ceil(rollout.prompts_per_step / actors)

    def crowd(role: str) -> int:
        return crowding.actors.get(role, 1)

    images = prompts_each(engine.actors.count) * samples
    full, rest = divmod(images, images_at_once(decoder, engine, guided))
    batches = [images_at_once(decoder, engine, guided)] * full + ([rest] if rest else [])
    speed = speeds(ENGINE)
    phases: dict[str, Seconds] = {"rollout": {}}
    for batch in batches:
        drawn = work.decoding(decoder, engine, speed, batch * contexts, prompt) * crowd(ENGINE)
        phases["rollout"] = _added(phases["rollout"], speed.parts("rollout", drawn, engine.dtype))

    groups, speed = prompts_each(reward.actors.count), speeds(REWARD)
    if pictures_cost:
        pictures = work.picturing(PIXELS * decoder.tokens * samples) * (groups * crowd(REWARD))
        phases["pictures"] = speed.parts("pictures", pictures, "bfloat16" if speed.gpu else "float32")
    for model in memory.known_rewards(reward.models):
        scored = work.featuring(model, samples) * (groups * crowd(REWARD))
        phases["reward"] = _added(phases.get("reward", {}), speed.parts("reward", scored, model.dtype))
    return phases


def grpo_step(config: GrpoConfig, decoder: PolicySizes, speeds: Speeds, crowding: Crowding) -> StepTime:
    """One step of GRPO. Evaluations, checkpoints, captions and rewards of unknown size are left out.

    A role's slowest actor counts: the one with the most prompts.
    """
    rollout, learner, engine = config.rollout, config.learner, config.rollout.engine
    prompt, samples = engine.max_prompt_tokens, rollout.samples_per_prompt
    contexts = 2 if rollout.guidance_scale != 1 else 1

    def prompts_each(actors: int) -> int:
        return ceil(rollout.prompts_per_step / actors)

    phases = _drawing(rollout, config.reward, config.world != "shapes", decoder, speeds, crowding)
    if config.algorithm.kl.beta:
        groups, speed = prompts_each(config.reference.count), speeds(REFERENCE)
        images = groups * samples
        times = ceil(images / config.images_per_pass) * contexts
        compared = work.passing(decoder, learner.dtype, images * contexts, prompt, decoder.codes, 1, times)
        phases["reference"] = speed.parts("reference", compared * crowding.actors.get(REFERENCE, 1), learner.dtype)

    groups, speed = prompts_each(learner.actors.count), speeds(LEARNER)
    updated = work.updating(decoder, learner, config.algorithm, groups, samples, contexts, prompt)
    phases["update"] = speed.parts("update", updated, learner.dtype) | {
        LINKS: config.algorithm.optimizer_steps * _reducing(decoder, learner, speed, crowding.nodes)
    }
    phases["weights"] = _broadcasting(decoder, learner, rollout, speed)

    each = {phase: sum(parts.values()) for phase, parts in phases.items()}
    reward, reference = each.get("pictures", 0) + each.get("reward", 0), each.get("reference", 0)
    scoring = reward + reference if crowding.scoring_shared else max(reward, reference)
    beside = config.rollout.ahead and not crowding.training_shared
    return StepTime(phases, (max if beside else sum)((each["rollout"], scoring + each["update"])) + each["weights"])


def dpo_step(config: DpoConfig, decoder: PolicySizes, speeds: Speeds, crowding: Crowding) -> StepTime:
    """One step of DPO. Of stored pairs the reference compares the next ones while the learner learns."""
    rollout, learner, reward = config.rollout, config.learner, config.reward
    prompt = rollout.engine.max_prompt_tokens if rollout else CAPTION
    if config.data:
        prompt = min(CAPTION, config.data.max_prompt_tokens)
    contexts, images = 2 if config.guided else 1, config.images_per_pass
    phases: dict[str, Seconds] = {}
    if rollout and reward:
        phases = _drawing(rollout, reward, config.world != "shapes", decoder, speeds, crowding)

    def through(groups: int, passes: float) -> work.Work:
        sequences = groups * images * contexts
        return work.passing(decoder, learner.dtype, sequences, prompt, decoder.codes, passes, groups * contexts)

    compared = through(ceil(config.groups / config.reference.count), 1) * crowding.actors.get(REFERENCE, 1)
    phases["reference"] = speeds(REFERENCE).parts("reference", compared, learner.dtype)
    speed = speeds(LEARNER)
    updated = through(config.passes, work.training_passes(learner)) + work.optimizing(decoder, learner)
    phases["update"] = speed.parts("update", updated, learner.dtype) | {
        LINKS: _reducing(decoder, learner, speed, crowding.nodes)
    }
    if rollout:
        phases["weights"] = _broadcasting(decoder, learner, rollout, speed)
    each = {phase: sum(parts.values()) for phase, parts in phases.items()}
    seconds = sum(each.values()) if rollout else max(each.values())
    return StepTime(phases, seconds)


def _broadcasting(decoder: PolicySizes, learner: LearnerConfig, rollout: RolloutConfig, speed: Speed) -> Seconds:
    """The weights on their way to the engines."""
    rate = getattr(speed.assumptions, rollout.broadcast)
    return {LINKS: speed.factors.get("weights", 1.0) * decoder.parameters * BYTES[learner.dtype] / rate}


def supervised_step(config: SupervisedConfig, decoder: PolicySizes, speed: Speed, nodes: int) -> StepTime:
    """One step of pretraining or SFT. Checkpoints, evaluations and sample grids are left out."""
    data, learner = config.data, config.learner
    prompt = min(CAPTION, data.max_prompt_tokens)
    sequences = config.passes * data.micro_batch
    passes = work.training_passes(learner)
    through = work.passing(decoder, learner.dtype, sequences, prompt, decoder.vocabulary, passes, config.passes)
    parts = speed.parts("update", through + work.optimizing(decoder, learner), learner.dtype)
    phases = {"update": parts | {LINKS: _reducing(decoder, learner, speed, nodes)}}
    return StepTime(phases, sum(phases["update"].values()))


def _reducing(decoder: PolicySizes, learner: LearnerConfig, speed: Speed, nodes: int) -> float:
    """Seconds of one all-reduce of the gradients, not overlapped with the backward pass."""
    link = min(speed.device.link, speed.assumptions.network) if nodes > 1 else speed.device.link
    return work.all_reduced(decoder, learner) / link


def _added(one: Seconds, other: Seconds) -> Seconds:
    return {part: one.get(part, 0.0) + other.get(part, 0.0) for part in one | other}
