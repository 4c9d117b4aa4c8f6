"""The training stages, composed of the other parts."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from simplear_rl.config.base import (
    ActorsConfig,
    CommandConfig,
    Count,
    Location,
    Positive,
    PromptText,
    Section,
)
from simplear_rl.config.benchmarks import EvaluationConfig, SupervisedEvaluationConfig
from simplear_rl.config.data import TokenDataConfig
from simplear_rl.config.learner import AlgorithmConfig, GuardsConfig, LearnerConfig, ReferenceConfig
from simplear_rl.config.online import require_geneval_metadata, require_same_dtype, require_weights_fit
from simplear_rl.config.rewards import RewardConfig
from simplear_rl.config.rollout import EngineConfig, RolloutConfig
from simplear_rl.gpus import GPUS


def _known_gpu(name: str) -> str:
    if name not in GPUS:
        raise ValueError(f"expected one of {', '.join(GPUS)}, found {name}; see simplear_rl/gpus.py")
    return name


GpuName = Annotated[str, AfterValidator(_known_gpu)]


class PlanConfig(Section):
    """What --dry-run takes for given where it finds no Ray cluster (RAY_ADDRESS) and no policy; a run ignores it."""

    nodes: Count
    gpus_per_node: Count
    cpus_per_node: Count
    gpu_memory_gib: Positive = Field(description="of each GPU")
    gpu: GpuName | None = Field(None, description="its name, for the plan of time")
    measured: Location | None = Field(
        None, description="file of `timings.step --output` whose figures replace what the plan of time assumes"
    )
    policy: Literal["simplear-0.5b", "simplear-1.5b"] = Field(description="sizes of `start`")
    resolution: Annotated[int, Field(ge=16, multiple_of=16)] = Field(description="pixels along each side of an image")


class BestConfig(Section):
    """Which checkpoint is the best: by its last score, or the mean of another metric over the steps that led to it."""

    metric: str = Field(description="name in metrics.jsonl")
    prefer: Literal["highest", "lowest"] | None = Field(
        None, description="value of the metric; by default the lowest of a loss, the highest of all others"
    )

    @property
    def is_score(self) -> bool:
        """Whether it is measured now and then, of the weights of the step."""
        return self.metric.startswith(("evaluation_", "validation_"))

    @property
    def lowest(self) -> bool:
        """Whether less is better."""
        return self.prefer == "lowest" or (self.prefer is None and "loss" in self.metric)


class StageConfig(CommandConfig):
    """What every training stage has."""

    run: Location = Field(description="folder of this run: config, metrics, checkpoints, samples")
    start: Location = Field(description="policy folder to start from")
    steps: Count = Field(description="of the whole run; a finished one goes on with more")
    checkpoint_every: Count = Field(description="steps between checkpoints; the last step always has one")
    keep_checkpoints: Count = Field(2, description="how many of the newest checkpoints stay on disk")
    keep_every: Count | None = Field(None, description="checkpoints of these steps' multiples stay as well")
    keep_best: BestConfig | None = Field(None, description="the best checkpoint so far stays as well")
    wandb: bool = Field(
        True, description="log to Weights & Biases, as WANDB_MODE says; without it: offline unless WANDB_API_KEY is set"
    )
    report_every: Count | None = Field(
        100, description="steps between writings of run/report.html, besides the last step; null: none is written"
    )
    learner: LearnerConfig
    plan: PlanConfig | None = Field(None, description="hardware and policy that --dry-run assumes where there are none")

    @property
    def roles(self) -> dict[str, ActorsConfig]:
        """The actors, by configuration key."""
        return {"learner.actors": self.learner.actors}

    @property
    def colocated(self) -> tuple[str, ...]:
        """Roles whose actors of equal number share a GPU or, without GPUs, a node."""
        return ()

    @model_validator(mode="after")
    def _ranks_have_gpus_of_their_own(self) -> Self:
        ranks = self.learner.actors
        if ranks.gpus > 1:
            raise ValueError(
                f"learner.actors.gpus ({ranks.gpus:g}): a rank computes on one GPU: set it to 1, and learner.actors."
                "count to the number of GPUs"
            )
        share = sum(self.roles[role].gpus for role in self.colocated) or ranks.gpus
        if ranks.count > 1 and 0 < share <= 0.5:
            raise ValueError(
                f"learner.actors.gpus ({ranks.gpus:g}): Ray would put two ranks on a GPU, which NCCL refuses: reserve "
                "more than half of one for each, or set learner.actors.count=1"
            )
        return self


class SupervisedConfig(StageConfig):
    """Pretraining and SFT: next-token prediction on token shards."""

    data: TokenDataConfig
    sample_prompts: list[PromptText] = Field(
        [], description="captions of the sample grid that goes with each checkpoint"
    )
    evaluation: SupervisedEvaluationConfig | None = Field(
        None, description="benchmark scores while it trains, in the metrics"
    )

    @property
    def inputs(self) -> list[Path]:
        """What must be there before the stage starts."""
        evaluated = self.evaluation.files if self.evaluation else []
        return [self.tokenizer, self.start, *self.data.folders, *evaluated]

    @property
    def roles(self) -> dict[str, ActorsConfig]:
        """The actors, by configuration key."""
        roles = super().roles
        if self.evaluation:
            roles |= {"evaluation.scorer": self.evaluation.scorer}
            roles |= {"evaluation.engine.actors": self.evaluation.engine.actors} if self.evaluation.engine else {}
        return roles

    @property
    def drawing(self) -> EngineConfig:
        """How an evaluation's images are drawn: by engines of its own, or by the learner in this way."""
        data, evaluation = self.data, self.evaluation
        if evaluation and evaluation.engine:
            return evaluation.engine
        contexts = {"max_concurrent": evaluation.learner_contexts} if evaluation else {}
        return EngineConfig(
            type="transformers", dtype=self.learner.dtype, max_prompt_tokens=data.max_prompt_tokens, **contexts
        )

    @property
    def passes(self) -> int:
        """Forward passes of each rank per step."""
        return self.data.batch_size // (self.data.micro_batch * self.learner.actors.count)

    @model_validator(mode="after")
    def _batch_divides(self) -> "SupervisedConfig":
        share = self.data.micro_batch * self.learner.actors.count
        if self.data.batch_size % share:
            raise ValueError(
                f"data.batch_size ({self.data.batch_size}) must be a multiple of data.micro_batch x "
                f"learner.actors.count ({self.data.micro_batch} x {self.learner.actors.count})"
            )
        if self.learner.micro_batch:
            raise ValueError("learner.micro_batch is for GRPO: set data.micro_batch, and leave it out")
        return self

    @model_validator(mode="after")
    def _weights_fit_the_engines(self) -> "SupervisedConfig":
        require_same_dtype(self.learner, self.drawing, "evaluation.engine")
        return self


class GrpoConfig(StageConfig):
    """Group-relative policy optimisation with image rewards."""

    prompts: Location = Field(description="text file with a prompt a line, or .jsonl, .csv, .tsv or .parquet")
    rollout: RolloutConfig
    reward: RewardConfig
    reference: ReferenceConfig = ReferenceConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    guards: GuardsConfig = GuardsConfig()
    evaluation: EvaluationConfig | None = Field(None, description="benchmark scores while it trains, in the metrics")
    samples_every: Count = Field(10, description="steps between sample grids")

    @property
    def inputs(self) -> list[Path]:
        """What must be there before the stage starts."""
        evaluated = self.evaluation.files if self.evaluation else []
        return [self.tokenizer, self.start, self.prompts, *self.reward.files, *evaluated]

    @property
    def roles(self) -> dict[str, ActorsConfig]:
        """The actors, by configuration key."""
        roles = super().roles
        roles |= {"rollout.engine.actors": self.rollout.engine.actors, "reward.actors": self.reward.actors}
        roles |= {"reference": self.reference} if self.algorithm.kl.beta else {}
        return roles | ({"evaluation.scorer": self.evaluation.scorer} if self.evaluation else {})

    @property
    def images_per_pass(self) -> int:
        """Images that go through learner and reference together."""
        most = self.learner.micro_batch or self.rollout.samples_per_prompt
        return min(most, self.images_per_minibatch)

    @property
    def images_per_minibatch(self) -> int:
        """Images of an optimizer step that each rank has."""
        groups = self.rollout.prompts_per_step // (self.learner.actors.count * self.algorithm.minibatches)
        return groups * self.rollout.samples_per_prompt

    @property
    def passes(self) -> int:
        """Forward passes of each rank per optimizer step."""
        return self.images_per_minibatch // self.images_per_pass

    @property
    def groups_per_pass(self) -> int:
        """Groups that go through learner and reference together; 1 also where each goes through in parts."""
        return max(1, self.images_per_pass // self.rollout.samples_per_prompt)

    @property
    def colocated(self) -> tuple[str, ...]:
        """Roles whose actors of equal number share a GPU or, without GPUs, a node."""
        return ("learner.actors", "rollout.engine.actors") if self.rollout.broadcast == "ipc" else ()

    def reference_step(self, step: int) -> int:
        """After which step the policy became the reference of step `step` (from 1); 0: it is `start`.

        With `rollout.ahead`, when a step is drawn the one before is not taken yet.
        """
        every = self.reference.refresh_every
        return max(0, step - 1 - self.rollout.ahead) // every * every if every else 0

    @model_validator(mode="after")
    def _reference_is_saved(self) -> "GrpoConfig":
        every, saved = self.reference.refresh_every, self.checkpoint_every
        if every and not self.algorithm.kl.beta:
            raise ValueError("reference.refresh_every: with algorithm.kl.beta 0 there is no reference; leave it out")
        if every and every % saved:
            raise ValueError(
                f"reference.refresh_every ({every}) must be a multiple of checkpoint_every ({saved}): the reference is "
                "read from a checkpoint"
            )
        if every and self.reference.refresh_with == "ema" and self.learner.ema is None:
            raise ValueError("reference.refresh_with=ema: there is no average; set learner.ema, for example 0.99")
        return self

    @model_validator(mode="after")
    def _unconditional_context_is_there(self) -> "GrpoConfig":
        if self.rollout.guidance_scale == 1 and not self.algorithm.unconditional_gradient:
            raise ValueError(
                "algorithm.unconditional_gradient=false: there is no such context without guidance; set "
                "rollout.guidance_scale, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _older_samples_are_weighted(self) -> "GrpoConfig":
        if self.rollout.ahead and self.algorithm.correction.kind == "none":
            raise ValueError(
                "rollout.ahead=1: older weights draw the samples, which algorithm.correction allows for, found "
                "algorithm.correction.kind none: set it to truncate or mask"
            )
        return self

    @model_validator(mode="after")
    def _groups_divide(self) -> "GrpoConfig":
        if self.rollout.prompts_per_step % self.learner.actors.count:
            raise ValueError(
                f"rollout.prompts_per_step ({self.rollout.prompts_per_step}) must be a multiple of "
                f"learner.actors.count ({self.learner.actors.count}): a group is never split between ranks"
            )
        groups = self.rollout.prompts_per_step // self.learner.actors.count
        if groups % self.algorithm.minibatches:
            raise ValueError(
                f"algorithm.minibatches ({self.algorithm.minibatches}) must divide the {groups} prompts that each "
                "learner has of a step: a group is never split between minibatches"
            )
        samples, together, images = self.rollout.samples_per_prompt, self.images_per_pass, self.images_per_minibatch
        if samples % together and (together % samples or images % together):
            raise ValueError(
                f"learner.micro_batch ({together}) must divide rollout.samples_per_prompt ({samples}), or be a "
                f"multiple of it that divides the {images} images that each learner has of a minibatch"
            )
        return self

    @model_validator(mode="after")
    def _rewards_are_normalised_once(self) -> "GrpoConfig":
        if self.reward.aggregate == "gdpo" and self.algorithm.advantage == "std":
            raise ValueError(
                "reward.aggregate=gdpo divides every reward by its own spread, algorithm.advantage=std would divide "
                "their sum once more: set algorithm.advantage=mean"
            )
        return self

    @model_validator(mode="after")
    def _geneval_knows_the_prompts(self) -> "GrpoConfig":
        require_geneval_metadata(self.world, self.reward)
        return self

    @model_validator(mode="after")
    def _weights_fit_the_engines(self) -> "GrpoConfig":
        require_weights_fit(self.learner, self.rollout)
        return self


class DemoConfig(Section):
    """The whole pipeline on the miniature world; the stages take their values from configs/shapes."""

    seed: Annotated[int, Field(ge=0)] = 0
    root: Location
    fresh: bool = Field(False, description="delete `root` first")
