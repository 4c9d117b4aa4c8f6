"""What DPO optimises, and when it warns."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from simplear_rl.config.base import NonNegative, Positive, Section


class PreferenceConfig(Section):
    """The loss of a pair of images, see algorithms/preference_loss.py."""

    loss: Literal["dpo", "ipo"] = Field("dpo", description="dpo: logistic; ipo: squared, with a margin to reach")
    beta: Positive = Field(
        0.1,
        description="strength of the reference: dpo multiplies the margin by it, ipo wants a margin of 1 / (2 beta)",
    )
    length_normalized: bool = Field(
        False, description="log-probs are means over an image's codes instead of sums: beta is then that much larger"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="dpo: share of pairs that are taken to be labelled the wrong way round"
    )
    sft: NonNegative = Field(
        0.0, description="the loss has this much times the mean negative log-prob of a winner's code besides"
    )
    margin: NonNegative | None = Field(
        None,
        description="with `rollout`: all pairs of a prompt's images whose rewards differ by more than this; null: the "
        "best against the worst",
    )

    @model_validator(mode="after")
    def _smoothing_has_effect(self) -> "PreferenceConfig":
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing is for the loss dpo, found ipo: leave it out")
        return self


class PreferenceGuardsConfig(Section):
    """When a run of DPO warns. What is not finite stops it, whatever stands here."""

    winners_warning: Positive = Field(
        0.05, description="how far the winners' log-probs have fallen below the reference's, nats per code"
    )
