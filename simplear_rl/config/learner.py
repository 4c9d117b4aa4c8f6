"""The learner: DeepSpeed, its optimizer, and what GRPO optimises."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from simplear_rl.config.base import ActorsConfig, Count, Fraction, NonNegative, PoolConfig, Positive, Section

LossName = Literal["grpo", "gspo", "cispo"]
Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    learning_rate: Positive
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate after the warm-up; cosine falls to 0 at the last optimizer step"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="optimizer steps over which the learning rate rises to its full value"
    )
    weight_decay: NonNegative = 0.01
    decay_norms: bool = Field(True, description="weight decay of norms and biases too; false as Transformers' trainer")
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.95), description="decay of the means of a gradient and of its square, a step"
    )
    gradient_clip: Positive = Field(1.0, description="a gradient of a larger norm is scaled down to it")


class LearnerConfig(Section):
    """The DeepSpeed learner."""

    actors: ActorsConfig = ActorsConfig()
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="what ZeRO shards: 1 optimizer, 2 + gradients, 3 + weights")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of weights and passes; gradients are summed in float32, for which bfloat16 needs zero_stage 1",
    )
    micro_batch: Count | None = Field(
        None,
        description="GRPO: the most images that go through learner and reference in one pass, which bounds their "
        "memory: part of a group, or several groups; null: a group",
    )
    activation_checkpointing: bool = Field(False, description="recompute each layer in the backward pass: less memory")
    optimizer: OptimizerConfig
    ema: Decay | None = Field(
        None,
        description="decay of a moving average of the weights, in float32 in host memory, saved as the policy folder "
        "`ema` of each checkpoint; null: none",
    )

    @model_validator(mode="after")
    def _sums_in_float32(self) -> "LearnerConfig":
        if self.dtype == "bfloat16" and not self.zero_stage:
            raise ValueError(
                "learner.dtype=bfloat16: DeepSpeed sums gradients in float32 from ZeRO stage 1 on, found "
                "learner.zero_stage 0: set learner.zero_stage to 1, which costs nothing on one rank"
            )
        return self


class KlConfig(Section):
    """KL to the frozen reference."""

    beta: NonNegative = Field(
        0.04,
        description="in the loss it multiplies a mean over tokens, in the reward the KL of a whole image, a sum over "
        "its tokens; 0: no reference is started, and `kl` is not logged",
    )
    placement: Literal["loss", "reward"] = Field(
        "loss", description="loss: beta * KL is added per token (published code); reward: r - beta * KL (paper)"
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        default_factory=lambda values: "k1" if values.get("placement") == "reward" else "k3",
        description="in the loss k3 (default) or k2, in the reward k1 (default), see algorithms/kl.py",
    )

    @model_validator(mode="after")
    def _regularises(self) -> "KlConfig":
        if (self.placement, self.estimator) == ("loss", "k1"):
            raise ValueError(
                "k1 in the loss regularises nothing: its gradient is 0 in expectation; set algorithm.kl.estimator to "
                "k2 or k3, or algorithm.kl.placement to reward"
            )
        if self.placement == "reward" and self.estimator != "k1":
            raise ValueError(
                f"{self.estimator} in the reward does not have the gradient of the KL, k1 has it; set "
                "algorithm.kl.estimator to k1 or leave it out"
            )
        return self


class ReferenceConfig(PoolConfig):
    """The frozen reference and its actors."""

    refresh_every: Count | None = Field(
        None,
        description="steps after which the policy of then becomes the reference, multiples of checkpoint_every; null: "
        "it stays `start`",
    )
    refresh_with: Literal["model", "ema"] = Field("model", description="the policy itself, or the average learner.ema")


class CorrectionConfig(Section):
    """Weights exp(learner - behaviour) of what an engine drew, where its log-probs are not the learner's."""

    kind: Literal["truncate", "mask", "none"] = Field(
        "truncate", description="weights above `limit`: truncate makes them `limit`, mask 0; none: all weights are 1"
    )
    level: Literal["token", "sequence"] = Field(
        "token", description="sequence: an image has one weight, the product over its tokens"
    )
    limit: Annotated[float, Field(ge=1)] = Field(2.0, description="see kind")


class AlgorithmConfig(Section):
    """GRPO."""

    advantage: Literal["std", "mean"] = Field("std", description="std: (r - mean) / (std + 1e-4); mean: r - mean")
    loss: LossName = Field(
        "grpo", description="grpo: a ratio per token, clipped; gspo: per image; cispo: per token, a clipped weight"
    )
    clip_low: Positive = Field(
        default_factory=lambda values: 3e-4 if values.get("loss") == "gspo" else 0.2,
        description="ratios count above 1 - clip_low; default: 0.2, of gspo 3e-4; cispo has none",
    )
    clip_high: Positive = Field(
        default_factory=lambda values: 4e-4 if values.get("loss") == "gspo" else 0.2,
        description="ratios count below 1 + clip_high; default: 0.2, of gspo 4e-4; cispo has larger ones",
    )
    minibatches: Count = Field(1, description="parts of a step's prompts, with an optimizer step for each")
    updates_per_batch: Count = Field(1, description="how often a step goes over all its minibatches")
    unconditional_gradient: bool = Field(
        True, description="guided: differentiate through both contexts; false: the unconditional one is a constant"
    )
    entropy_bonus: NonNegative = Field(
        0.0, description="the loss is less this much times the mean entropy of a token over the codebook, nats"
    )
    kl: KlConfig = KlConfig()
    correction: CorrectionConfig = CorrectionConfig()

    @property
    def optimizer_steps(self) -> int:
        """How many optimizer steps a step of GRPO takes."""
        return self.minibatches * self.updates_per_batch


class GuardsConfig(Section):
    """When a GRPO run warns. What is not finite stops it, whatever stands here."""

    kl_warning: Positive = Field(1.0, description="KL to the reference per token, nats")
    mismatch_mean_warning: Positive = Field(0.1, description="mean |rollout - learner| log-prob, nats")
    mismatch_p99_warning: Positive = Field(0.5, description="its 99th percentile over the tokens of a group, nats")
    collapsed_groups_warning: Count = Field(3, description="steps in a row in which no group has unequal rewards")
    narrowing_warning: Fraction = Field(
        0.3, description="share by which entropy and diversity have both fallen while the reward rose, see docs/grpo.md"
    )
    narrowing_window: Annotated[int, Field(ge=2, multiple_of=2)] = Field(
        50, description="steps of which the later half is compared with the earlier one"
    )
