"""Direct preference optimisation: the schema of `python -m simplear_rl.dpo`."""

from pathlib import Path

from pydantic import Field, model_validator

from simplear_rl.config.base import ActorsConfig, Count, Location, PoolConfig
from simplear_rl.config.benchmarks import EvaluationConfig
from simplear_rl.config.data import PairDataConfig
from simplear_rl.config.online import require_geneval_metadata, require_weights_fit
from simplear_rl.config.preference import PreferenceConfig, PreferenceGuardsConfig
from simplear_rl.config.rewards import RewardConfig
from simplear_rl.config.rollout import RolloutConfig
from simplear_rl.config.stages import StageConfig


class DpoConfig(StageConfig):
    """DPO on stored pairs (`data`), or on pairs of what the policy draws (`rollout`, `reward` and `prompts`)."""

    data: PairDataConfig | None = Field(None, description="stored pairs")
    prompts: Location | None = Field(
        None, description="with rollout: text file with a prompt a line, or .jsonl, .csv, .tsv or .parquet"
    )
    rollout: RolloutConfig | None = Field(None, description="pairs are drawn in each step, instead of `data`")
    reward: RewardConfig | None = Field(None, description="with rollout: what says which image of a pair is better")
    reference: PoolConfig = Field(PoolConfig(), description="actors of the frozen reference, which is `start`")
    algorithm: PreferenceConfig = PreferenceConfig()
    guards: PreferenceGuardsConfig = PreferenceGuardsConfig()
    evaluation: EvaluationConfig | None = Field(
        None, description="with rollout: benchmark scores while it trains, in the metrics"
    )
    samples_every: Count = Field(10, description="with rollout: steps between sample grids")

    @property
    def inputs(self) -> list[Path]:
        """What must be there before the stage starts."""
        paths = [self.tokenizer, self.start]
        if self.data:
            paths += self.data.folders
        if self.prompts and self.reward:
            paths += [self.prompts, *self.reward.files]
        return paths + (self.evaluation.files if self.evaluation else [])

    @property
    def roles(self) -> dict[str, ActorsConfig]:
        """The actors, by configuration key."""
        roles = super().roles
        if self.rollout and self.reward:
            roles |= {"rollout.engine.actors": self.rollout.engine.actors, "reward.actors": self.reward.actors}
        roles |= {"reference": self.reference}
        return roles | ({"evaluation.scorer": self.evaluation.scorer} if self.evaluation else {})

    @property
    def groups(self) -> int:
        """Pairs of a step or, with rollout, prompts."""
        if self.rollout:
            return self.rollout.prompts_per_step
        assert self.data
        return self.data.batch_size

    @property
    def images_per_pass(self) -> int:
        """The most images that go through learner and reference together: those of a prompt that are in pairs."""
        return self.rollout.samples_per_prompt if self.rollout and self.algorithm.margin is not None else 2

    @property
    def passes(self) -> int:
        """Forward passes of each rank per step."""
        return self.groups // self.learner.actors.count

    @property
    def guided(self) -> bool:
        """Whether log-probs are those of the guided distribution."""
        source = self.rollout or self.data
        return source is not None and source.guidance_scale != 1

    @property
    def colocated(self) -> tuple[str, ...]:
        """Roles whose actors of equal number share a GPU or, without GPUs, a node."""
        ipc = self.rollout and self.reward and self.rollout.broadcast == "ipc"
        return ("learner.actors", "rollout.engine.actors") if ipc else ()

    @model_validator(mode="after")
    def _pairs_have_one_origin(self) -> "DpoConfig":
        drawn = {"rollout": self.rollout, "reward": self.reward, "prompts": self.prompts}
        there = [name for name, section in drawn.items() if section]
        if self.data and there:
            both = f"found data and {', '.join(there)}"
            raise ValueError(f"pairs are stored (data) or drawn ({', '.join(drawn)}), {both}")
        if not self.data and len(there) < len(drawn):
            missing = ", ".join(name for name in drawn if name not in there)
            raise ValueError(f"expected data, or all of {', '.join(drawn)}; without data they lack {missing}")
        if self.data and (self.evaluation or self.algorithm.margin is not None):
            key = "evaluation" if self.evaluation else "algorithm.margin"
            raise ValueError(f"{key} is for pairs that are drawn (rollout), not for stored ones (data): leave it out")
        return self

    @model_validator(mode="after")
    def _groups_divide(self) -> "DpoConfig":
        if self.groups % self.learner.actors.count:
            raise ValueError(
                f"{'rollout.prompts_per_step' if self.rollout else 'data.batch_size'} ({self.groups}) must be a "
                f"multiple of learner.actors.count ({self.learner.actors.count})"
            )
        if self.learner.micro_batch:
            raise ValueError("learner.micro_batch is for GRPO: a pass of DPO has the pairs of one prompt; leave it out")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "DpoConfig":
        if self.rollout and self.rollout.ahead:
            raise ValueError("rollout.ahead is for GRPO: DPO draws its pairs with the weights of the step before")
        if self.rollout and self.reward:
            require_geneval_metadata(self.world, self.reward)
            require_weights_fit(self.learner, self.rollout)
        return self
