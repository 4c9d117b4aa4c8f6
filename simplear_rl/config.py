"""The configuration schema of every command. `configs/*/*.yaml` are its instances; `key=value` overrides them.

In a configuration `${root}` stands for the value of `root`.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from simplear_rl.errors import UserError
from simplear_rl.files import is_hub_id

CONFIGS = Path(__file__).parent.parent / "configs"
# Published on the Hugging Face hub in xswu/HPSv2.
HPSV2_WEIGHTS = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
# On the Hugging Face hub, and on ModelScope.
JUDGES = {
    "transformers": "Qwen/Qwen2.5-VL-7B-Instruct",
    "mplug": "damo/mplug_visual-question-answering_coco_large_en",
}


def _absolute(path: Path) -> Path:
    """Absolute, since actors have working directories of their own."""
    if not str(path).isprintable():
        raise ValueError(f"control characters in the path {str(path)!r}")
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None


Location = Annotated[Path, AfterValidator(_absolute)]
LocationOrHubId = Annotated[Path, AfterValidator(lambda path: path if is_hub_id(path) else _absolute(path))]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ActorsConfig(Section):
    """How many actors of a role, and what each one occupies."""

    count: Count = 1
    cpus: Positive = Field(1.0, description="CPUs that Ray reserves for each actor; fractions share a core")
    gpus: NonNegative = Field(0.0, description="GPUs that Ray reserves for each actor")
    threads: Count = Field(1, description="threads of each actor's CPU kernels")


class PoolConfig(ActorsConfig):
    """Actors each of which can do any piece of the work, so that more may join while a run goes on."""

    max_count: Count | None = Field(
        None,
        description="beyond the `count` actors that a run needs, up to so many work whenever the cluster has room; "
        "nodes with them may join and leave",
    )

    @model_validator(mode="after")
    def _at_least_count(self) -> "PoolConfig":
        if self.max_count is not None and self.max_count < self.count:
            raise ValueError(f"max_count ({self.max_count}) must be at least count ({self.count})")
        return self


class FaultsConfig(Section):
    """What happens when actors die or hang."""

    max_restarts: Count = Field(
        3,
        description="how often an actor of a pool is restarted, and how often in a row, without a new checkpoint, "
        "a stage that lost its learner starts again from the last one",
    )
    heartbeat_seconds: Positive = Field(
        60, description="an actor that gives no sign of life for so long, not even from an idle thread, is killed"
    )


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    learning_rate: Positive
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: NonNegative = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    gradient_clip: Positive = 1.0


class LearnerConfig(Section):
    """The DeepSpeed learner."""

    actors: ActorsConfig = ActorsConfig()
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="what ZeRO shards: 1 optimizer, 2 + gradients, 3 + weights")
    dtype: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = Field(False, description="recompute each layer in the backward pass: less memory")
    optimizer: OptimizerConfig


class CommandConfig(Section):
    """What every command has."""

    seed: Annotated[int, Field(ge=0)] = 0
    root: Location = Field(description="folder of what is read and written, ${root} in other values")
    world: Literal["shapes"] | None = Field(
        None, description="embedded world that makes what a command needs and does not find below root"
    )
    tokenizer: LocationOrHubId = Field(
        description="visual tokenizer: folder with encoder.jit and decoder.jit, or Hugging Face id"
    )
    faults: FaultsConfig = FaultsConfig()


class PlanConfig(Section):
    """What --dry-run takes for given where it finds no Ray cluster (RAY_ADDRESS) and no policy; a run ignores it."""

    nodes: Count
    gpus_per_node: Count
    cpus_per_node: Count
    gpu_memory_gib: Positive
    policy: Literal["simplear-0.5b", "simplear-1.5b"] = Field(description="sizes of `start`")
    resolution: Annotated[int, Field(ge=16, multiple_of=16)] = Field(description="pixels along each side of an image")


class BestConfig(Section):
    """Which checkpoint is the best: by the mean of a metric over the steps that led to it."""

    metric: str = Field(description="name in metrics.jsonl")
    prefer: Literal["highest", "lowest"] = "highest"


class StageConfig(CommandConfig):
    """What every training stage has."""

    run: Location = Field(description="folder of this run: config, metrics, checkpoints, samples")
    start: Location = Field(description="policy folder to start from")
    steps: Count
    checkpoint_every: Count = Field(description="steps between checkpoints; the last step always has one")
    keep_checkpoints: Count = Field(2, description="how many of the newest checkpoints stay on disk")
    keep_every: Count | None = Field(None, description="checkpoints of these steps' multiples stay as well")
    keep_best: BestConfig | None = Field(None, description="the best checkpoint so far stays as well")
    wandb: bool = Field(True, description="log to Weights & Biases: offline unless WANDB_API_KEY is set")
    learner: LearnerConfig
    plan: PlanConfig | None = Field(None, description="hardware and policy that --dry-run assumes where there are none")


class TokenSourceConfig(Section):
    """One folder of token shards, and its share of what is trained on."""

    shards: Location = Field(description="folder of Parquet files with columns `caption`, `codes`, `short_caption`")
    weight: Positive = Field(1.0, description="share of the images, relative to the other sources' weights")


class TokenDataConfig(Section):
    """Token shards for pretraining and SFT."""

    sources: Annotated[list[TokenSourceConfig], Field(min_length=1)]
    batch_size: Count = Field(description="images per step, over all learner ranks")
    micro_batch: Count = Field(description="images per forward pass of one rank")
    drop_caption: Fraction = Field(0.1, description="share of captions replaced by the null prompt (for guidance)")
    short_caption: Fraction = Field(0.5, description="share of short captions, where an image has one")
    max_prompt_tokens: Count = Field(512, description="longest prompt, special tokens included")
    long_caption: Literal["refuse", "truncate"] = Field("refuse", description="what happens to a longer one")
    shuffle_rows: Count = Field(65_536, description="images of a source that are in memory and shuffled at a time")

    @property
    def folders(self) -> list[Path]:
        """Where the shards are."""
        return [source.shards for source in self.sources]


class SupervisedConfig(StageConfig):
    """Pretraining and SFT: next-token prediction on token shards."""

    data: TokenDataConfig
    sample_prompts: list[str] = Field([], description="captions of the sample grid that goes with each checkpoint")

    @property
    def inputs(self) -> list[Path]:
        """What must be there before the stage starts."""
        return [self.tokenizer, self.start, *self.data.folders]

    @property
    def roles(self) -> dict[str, ActorsConfig]:
        """The actors, by configuration key."""
        return {"learner.actors": self.learner.actors}

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
        return self


EngineType = Literal["vllm", "transformers", "sjd"]


class EngineConfig(Section):
    """The rollout engines."""

    type: EngineType = Field(
        "vllm", description="transformers: without vLLM; sjd: speculative Jacobi decoding; GRPO draws with vllm"
    )
    actors: PoolConfig = PoolConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_concurrent: Count = Field(64, description="contexts that one engine decodes at a time; a guided image has two")
    kv_cache_gib: Positive = Field(0.25, description="vllm: memory of one engine's key-value cache, GiB")
    max_prompt_tokens: Count = Field(64, description="longest prompt, special tokens included")


class RolloutConfig(Section):
    """What is drawn in each step."""

    engine: EngineConfig = EngineConfig()
    prompts_per_step: Count
    samples_per_prompt: Annotated[int, Field(ge=2)] = Field(description="G: the group that an advantage compares")
    temperature: Positive = 1.0
    guidance_scale: NonNegative = Field(1.0, description="1 is unguided; what is drawn is what the learner optimises")
    broadcast: Literal["object_store", "collective", "ipc"] = Field(
        "object_store",
        description="weights to the engines: object_store: through the host; collective: device to device (NCCL, "
        "gloo); ipc: through memory that learner rank i and engine i share, on one GPU or one node's CPUs",
    )

    @field_validator("engine")
    @classmethod
    def _takes_new_weights(cls, engine: EngineConfig) -> EngineConfig:
        if engine.type != "vllm":
            raise ValueError(f"GRPO draws with vllm alone: no other engine takes new weights, found type {engine.type}")
        return engine


class DetectorConfig(Section):
    """GenEval's detector: the models that find objects and name their colours."""

    model: LocationOrHubId = Field(
        Path("facebook/mask2former-swin-small-coco-instance"),
        description="Mask2Former for COCO instances: folder or Hugging Face id",
    )
    # The weights were trained with QuickGELU, which open_clip's plain ViT-L-14 does not have.
    clip: str = Field("ViT-L-14-quickgelu", description="open_clip name, hf-hub:NAME or local-dir:FOLDER")
    clip_weights: str | None = Field("openai", description="open_clip tag or file; null with hf-hub: and local-dir:")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: Count = Field(4, description="images per forward pass")


class RewardModelConfig(Section):
    """One reward model; a sample's reward is the weighted sum over all of them."""

    type: Literal["clip", "hpsv2", "geneval"]
    model: str = Field(
        "",
        description="clip: open_clip name, hf-hub:NAME or local-dir:FOLDER; hpsv2: its network, ViT-H-14 as published",
    )
    weights: str | None = Field(
        None, description="clip: open_clip tag or file; hpsv2: v2.0, v2.1 (from the Hugging Face hub) or file"
    )
    weight: float = 1.0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: Count = Field(32, description="images, or captions, per forward pass")
    preprocess: Literal["model", "simplear"] = Field(
        "model", description="model: its own transform; simplear: bilinear, as SimpleAR's published training does"
    )
    long_text: Literal["refuse", "truncate"] = Field(
        "refuse", description="prompts beyond the model's context (77 tokens): an error, or their beginning is scored"
    )
    metadata: Location | None = Field(
        None,
        description="geneval: file like GenEval's evaluation_metadata.jsonl, with every training prompt; null: the "
        "miniature world's captions and its exact detector",
    )
    detector: DetectorConfig | None = Field(None, description="geneval with metadata; null: GenEval's own")
    credit: Literal["correct", "partial"] = Field(
        "correct", description="geneval: 1 or 0, as the benchmark says, or the share of requirements that are met"
    )

    @field_validator("weights")
    @classmethod
    def _file_is_absolute(cls, weights: str | None) -> str | None:
        file = Path(weights or "").expanduser()
        return str(file.absolute()) if file.is_file() else weights

    @model_validator(mode="after")
    def _keys_fit_the_type(self) -> "RewardModelConfig":
        of_a_network = ("model", "weights", "dtype", "batch_size", "preprocess", "long_text")
        for key in of_a_network if self.type == "geneval" else ("metadata", "detector", "credit"):
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                raise ValueError(f"a {self.type} reward has no `{key}`, found {value}")
        if self.detector and not self.metadata:
            raise ValueError("geneval: `detector` is for `metadata`; the miniature world has one of its own")
        return self

    @model_validator(mode="after")
    def _weights_are_known(self) -> "RewardModelConfig":
        if self.type == "geneval":
            return self
        if not self.model:
            raise ValueError(f"a {self.type} reward needs `model`")
        if self.type == "hpsv2" and not self.weights:
            raise ValueError("an hpsv2 reward needs `weights`: v2.0, v2.1 or a file")
        if self.type == "clip" and bool(self.weights) == self.model.startswith(("local-dir:", "hf-hub:")):
            raise ValueError(
                f"clip reward {self.model}: an open_clip name needs `weights`, local-dir: and hf-hub: bring their own; "
                f"found weights {self.weights}"
            )
        return self

    @property
    def name(self) -> str:
        """How the reward is called in metrics."""
        return f"{self.type}_{Path(self.model).name}" if self.type == "clip" else self.type


class RewardConfig(Section):
    """The reward actors: visual tokenizer and reward models."""

    actors: PoolConfig = PoolConfig()
    models: Annotated[list[RewardModelConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> "RewardConfig":
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"two reward models are called the same in metrics: {', '.join(names)}")
        return self

    @property
    def files(self) -> list[Path]:
        """Local folders and files that the rewards are read from."""
        return self.networks + [model.metadata for model in self.models if model.metadata]

    @property
    def networks(self) -> list[Path]:
        """Those of CLIP and HPSv2 models."""
        local = [Path(m.model.removeprefix("local-dir:")) for m in self.models if m.model.startswith("local-dir:")]
        weights = [m.weights for m in self.models if m.type == "hpsv2" and m.weights]
        return local + [Path(file) for file in weights if file not in HPSV2_WEIGHTS]


class KlConfig(Section):
    """KL to the frozen reference."""

    beta: NonNegative = 0.04
    estimator: Literal["k1", "k2", "k3"] = "k3"
    placement: Literal["loss", "reward"] = Field(
        "loss", description="loss: beta * KL is added per token (published code); reward: r - beta * KL (paper)"
    )


class AlgorithmConfig(Section):
    """GRPO."""

    advantage: Literal["std", "mean"] = Field("std", description="std: (r - mean) / (std + 1e-4); mean: r - mean")
    clip_low: Positive = 0.2
    clip_high: Positive = 0.2
    updates_per_batch: Count = 1
    unconditional_gradient: bool = Field(True, description="guided: differentiate through both contexts")
    kl: KlConfig = KlConfig()


class GuardsConfig(Section):
    """When a GRPO run warns. What is not finite stops it, whatever stands here."""

    kl_warning: Positive = Field(1.0, description="KL to the reference per token, nats")
    mismatch_warning: Positive = Field(1.0, description="mismatch_max: rollout and learner log-probs differ, nats")
    collapsed_groups_warning: Count = Field(3, description="steps in a row in which no group has unequal rewards")


class JudgeConfig(Section):
    """DPG-Bench's visual judge. Scores of different judges do not compare."""

    type: Literal["transformers", "mplug"] = Field(
        "transformers", description="mplug: the judge of the published scores, through ModelScope"
    )
    model: LocationOrHubId | None = Field(
        None, description="folder or id; null: Qwen/Qwen2.5-VL-7B-Instruct, or mPLUG large"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="of a Transformers judge")
    batch_size: Count = Field(16, description="questions per forward pass of a Transformers judge")

    @property
    def name(self) -> str:
        """The model's folder or id."""
        return str(self.model or JUDGES[self.type])


class BenchmarkConfig(Section):
    """A benchmark: its prompts, how images for them are drawn, and what judges them."""

    benchmark: Literal["shapes", "geneval", "dpg"] = "shapes"
    prompts: Location | None = Field(
        None, description="geneval: its evaluation_metadata.jsonl; dpg: JSON Lines of item_id, text"
    )
    questions: Location | None = Field(None, description="dpg: its dpg_bench.csv")
    rules: Literal["corrected", "official"] = Field("corrected", description="dpg: official has the script's quirks")
    prompt_count: Count | None = Field(
        None, description="so many of the benchmark's prompts, evenly spaced and always the same ones; null: all"
    )
    images_per_prompt: Count = 1
    temperature: NonNegative = Field(1.0, description="0 is greedy")
    guidance_scale: NonNegative = Field(1.0, description="1 is unguided")
    scorer: ActorsConfig = ActorsConfig()
    detector: DetectorConfig = DetectorConfig()
    judge: JudgeConfig = JudgeConfig()

    @model_validator(mode="after")
    def _has_its_files(self) -> "BenchmarkConfig":
        if not self.prompts and self.benchmark != "shapes":
            raise ValueError(f"`prompts` is needed: the file of {self.benchmark}'s prompts")
        if self.benchmark == "dpg":
            if not self.questions:
                raise ValueError("`questions` is needed: the file of dpg's questions")
            if self.images_per_prompt != 4:
                raise ValueError(f"images_per_prompt: dpg's grids hold 4 images, found {self.images_per_prompt}")
        return self


class EvaluationConfig(BenchmarkConfig):
    """Evaluation during training: with the weights of the step, on the rollout engines."""

    every: Count = Field(description="steps between evaluations; the last step always has one")

    @property
    def files(self) -> list[Path]:
        """Files, folders and Hugging Face ids that it reads."""
        judge = Path(self.judge.name) if self.judge.type == "transformers" else None  # ModelScope finds its own
        model = {"shapes": None, "geneval": self.detector.model, "dpg": judge}[self.benchmark]
        return [path for path in (self.prompts, self.questions, model) if path]


class GrpoConfig(StageConfig):
    """Group-relative policy optimisation with image rewards."""

    prompts: Location = Field(description="text file: one prompt per line")
    rollout: RolloutConfig
    reward: RewardConfig
    reference: PoolConfig = PoolConfig()
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
        roles = {
            "learner.actors": self.learner.actors,
            "rollout.engine.actors": self.rollout.engine.actors,
            "reward.actors": self.reward.actors,
            "reference": self.reference,
        }
        return roles | ({"evaluation.scorer": self.evaluation.scorer} if self.evaluation else {})

    @property
    def colocated(self) -> tuple[str, ...]:
        """Roles whose actors of equal number share a GPU or, without GPUs, a node."""
        return ("learner.actors", "rollout.engine.actors") if self.rollout.broadcast == "ipc" else ()

    @model_validator(mode="after")
    def _groups_divide(self) -> "GrpoConfig":
        if self.rollout.prompts_per_step % self.learner.actors.count:
            raise ValueError(
                f"rollout.prompts_per_step ({self.rollout.prompts_per_step}) must be a multiple of "
                f"learner.actors.count ({self.learner.actors.count}): a group is never split between ranks"
            )
        return self

    @model_validator(mode="after")
    def _geneval_knows_the_prompts(self) -> "GrpoConfig":
        if self.world != "shapes" and any(m.type == "geneval" and not m.metadata for m in self.reward.models):
            raise ValueError("a geneval reward needs `metadata`, except in the miniature world (world: shapes)")
        return self

    @model_validator(mode="after")
    def _weights_fit_the_engines(self) -> "GrpoConfig":
        learner, engine = self.learner, self.rollout.engine
        if learner.dtype != engine.dtype:
            raise ValueError(
                f"rollout.engine.dtype ({engine.dtype}) must be learner.dtype ({learner.dtype}): "
                "engines hold the learner's weights bit for bit"
            )
        gpus = learner.actors.gpus, engine.actors.gpus
        if self.rollout.broadcast == "collective" and any(gpus) and not all(n and n == int(n) for n in gpus):
            raise ValueError(
                "rollout.broadcast=collective: NCCL needs a GPU of its own in every learner and engine, found "
                f"learner.actors.gpus {gpus[0]:g}, rollout.engine.actors.gpus {gpus[1]:g}: "
                "reserve whole ones for both, or set rollout.broadcast=object_store"
            )
        if self.rollout.broadcast == "ipc":
            if learner.actors.count != engine.actors.count:
                raise ValueError(
                    "rollout.broadcast=ipc: every learner shares its device with one engine, found "
                    f"learner.actors.count {learner.actors.count}, rollout.engine.actors.count {engine.actors.count}: "
                    "set both to the same, or rollout.broadcast=object_store"
                )
            if (engine.actors.max_count or 0) > engine.actors.count:
                raise ValueError(
                    "rollout.broadcast=ipc: an engine that joins later has no learner to share memory with, found "
                    f"rollout.engine.actors.max_count {engine.actors.max_count}: leave it out, or set "
                    "rollout.broadcast=object_store"
                )
            if any(gpus) and (not all(gpus) or sum(gpus) > 1):
                raise ValueError(
                    "rollout.broadcast=ipc: a learner and an engine share a GPU, found "
                    f"learner.actors.gpus {gpus[0]:g}, rollout.engine.actors.gpus {gpus[1]:g}: "
                    "reserve fractions that sum to 1, or set rollout.broadcast=object_store"
                )
        return self


class DemoConfig(Section):
    """The whole pipeline on the miniature world; the stages take their values from configs/shapes."""

    seed: Annotated[int, Field(ge=0)] = 0
    root: Location
    fresh: bool = Field(False, description="delete `root` first")


class EvaluateConfig(BenchmarkConfig, CommandConfig):
    """Images for a benchmark's prompts, or images that others made, and their scores."""

    policy: Location | None = Field(None, description="policy folder to evaluate")
    score_only: Location | None = Field(
        None, description="folder of images in the benchmark's own layout: they are scored, nothing is drawn"
    )
    allow_missing: bool = Field(False, description="score_only: score what is there, and say what is not")
    image_size: Count | None = Field(None, description="score_only with dpg: side of one image of a grid, pixels")
    output: Location = Field(description="folder for results.jsonl, scores.json, index.html and the images")
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def _has_all_it_needs(self) -> "EvaluateConfig":
        if not (self.policy or self.score_only):
            raise ValueError("either `policy` is needed, to draw images, or `score_only`, a folder of them")
        if (self.engine.actors.max_count or 0) > self.engine.actors.count:
            raise ValueError(
                f"engine.actors.max_count: {self.engine.actors.max_count}, but an evaluation shares its prompts out "
                "once, when it begins: raise engine.actors.count"
            )
        if self.allow_missing and not self.score_only:
            raise ValueError("`allow_missing` is for `score_only`: images that are drawn are never missing")
        if self.benchmark == "dpg" and self.score_only and not self.image_size:
            raise ValueError("`image_size` is needed: grids with padding cannot be told from others without it")
        return self

    @property
    def roles(self) -> dict[str, ActorsConfig]:
        """The actors, by configuration key."""
        return {"scorer": self.scorer} | ({} if self.score_only else {"engine.actors": self.engine.actors})

    @property
    def images(self) -> Path:
        """Folder of the images, in the benchmark's layout."""
        return self.score_only or self.output / "images"


class TokenizeConfig(CommandConfig):
    """Token shards from images and captions."""

    input: LocationOrHubId = Field(
        description="folder, file or Hugging Face data set: JSON lines, WebDataset tars or Parquet with image bytes"
    )
    files: str = Field("**/*", description="glob pattern that chooses among the files below `input`")
    output: Location = Field(description="folder for the shards and rejected.jsonl")
    size: Count = Field(description="pixels per side of the square that an image is resized and cropped to")
    batch_size: Count = Field(32, description="images that the tokenizer encodes at a time")
    shard_size: Count = Field(1000, description="samples of a shard, bad ones included; a tar always makes one shard")
    max_rejected: Fraction = Field(1.0, description="share of bad samples above which the command fails, at its end")
    actors: ActorsConfig = ActorsConfig()

    @model_validator(mode="after")
    def _output_is_no_input(self) -> "TokenizeConfig":
        if self.output.is_relative_to(self.input):
            raise ValueError(f"output ({self.output}) must not be inside input: its shards would become input")
        return self


Schema = TypeVar("Schema", bound=BaseModel)


def load_config(schema: type[Schema], file: Path, overrides: Sequence[str] = ()) -> Schema:
    """Read a YAML file and apply `key.sub=value` overrides (values are YAML).

    Raises:
        UserError: unreadable file, broken YAML, malformed override, unknown key (nearest valid name offered) or bad
            value; the message names the file or the override.
    """
    try:
        values = yaml.safe_load(Path(file).read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or no such date
        raise UserError(f"{file}: not a readable YAML file: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected keys and values, found {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    try:
        if isinstance(values.get("root"), str):
            values["root"] = str(_absolute(Path(values["root"])))
            values = _with_root(values, values["root"])
        return schema.model_validate(values)
    except ValidationError as error:
        problems = [_explain(schema, problem) for problem in error.errors()]
        raise UserError("\n".join([f"{file}{' with overrides' if overrides else ''}:", *problems])) from None
    except RecursionError as error:
        raise UserError(f"{file}: a value contains itself") from error
    except ValueError as error:
        raise UserError(f"{file}: root: {error}") from error


def _with_root(value: Any, root: str) -> Any:
    """`value` with every ${root} replaced."""
    if isinstance(value, dict):
        return {key: _with_root(part, root) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_root(part, root) for part in value]
    return value.replace("${root}", root) if isinstance(value, str) else value


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"{override!r}: an override is written key=value, for example learner.zero_stage=2")
    try:
        value = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{override!r}: the value is not YAML: {error}") from error
    *sections, last = key.split(".")
    for depth, name in enumerate(sections):
        values = values.setdefault(name, {}) if isinstance(values, dict) else values
        if not isinstance(values, dict):
            raise UserError(f"{override!r}: {'.'.join(sections[: depth + 1])} is not a section")
    values[last] = value


def _explain(schema: type[BaseModel], problem: ErrorDetails) -> str:
    """One line for one of pydantic's errors: key, what was expected, what was found."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        without_indices = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))
        nearest = difflib.get_close_matches(without_indices, known_keys(schema), n=1, cutoff=0)
        return f"  {key}: unknown key; did you mean {nearest[0]}?"
    if problem["type"] == "missing":
        return f"  {key}: missing"
    found = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
    return f"  {key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}{found}"


def known_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a schema, sections included."""
    keys = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        for section in (field.annotation, *get_args(field.annotation)):  # itself, or what a list holds
            if isinstance(section, type) and issubclass(section, BaseModel):
                keys += known_keys(section, f"{prefix}{name}.")
    return keys
