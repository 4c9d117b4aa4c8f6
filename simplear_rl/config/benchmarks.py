"""Benchmarks: their prompts, how their images are drawn, and what judges them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from simplear_rl.config.base import (
    ActorsConfig,
    CommandConfig,
    Count,
    GuidanceConfig,
    Location,
    LocationOrHubId,
    NonNegative,
    Section,
)
from simplear_rl.config.rollout import EngineConfig

# On the Hugging Face hub, and on ModelScope.
JUDGES = {
    "transformers": "Qwen/Qwen2.5-VL-7B-Instruct",
    "mplug": "damo/mplug_visual-question-answering_coco_large_en",
}
GENEVAL2_JUDGE = Path("Qwen/Qwen3-VL-8B-Instruct")


def local_clip(model: str) -> list[Path]:
    """The folder of an open_clip model, if its name says one."""
    folder = model.removeprefix("local-dir:")
    return [] if folder == model else [Path(folder)]


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

    @property
    def files(self) -> list[Path]:
        """Folders and Hugging Face ids that it is read from."""
        return [self.model, *local_clip(self.clip)]


class JudgeConfig(Section):
    """The visual judge of DPG-Bench or GenEval 2. Scores of different judges do not compare."""

    type: Literal["transformers", "mplug"] = Field(
        "transformers", description="mplug: the judge of DPG-Bench's published scores, through ModelScope"
    )
    model: LocationOrHubId | None = Field(
        None,
        description="folder or id; null: Qwen/Qwen2.5-VL-7B-Instruct or mPLUG large, and for geneval2 "
        "Qwen/Qwen3-VL-8B-Instruct",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="of a Transformers judge")
    batch_size: Count = Field(16, description="questions per forward pass of a Transformers judge")


class FeaturesConfig(Section):
    """The CLIP in whose image features diversity is measured: better not the one that is the reward."""

    model: str = Field("ViT-L-14-quickgelu", description="open_clip name, hf-hub:NAME or local-dir:FOLDER")
    weights: str | None = Field("openai", description="open_clip tag or file; null with hf-hub: and local-dir:")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: Count = Field(16, description="images per forward pass")


class BenchmarkConfig(GuidanceConfig):
    """A benchmark: its prompts, how images for them are drawn, and what judges them."""

    benchmark: Literal["shapes", "geneval", "geneval2", "dpg"] = "shapes"
    prompts: Location | None = Field(
        None,
        description="geneval: its evaluation_metadata.jsonl; geneval2: its geneval2_data.jsonl; dpg: its folder of "
        "prompts, JSON Lines of item_id, text, or null: those in `questions`",
    )
    questions: Location | None = Field(None, description="dpg: its dpg_bench.csv")
    rules: Literal["corrected", "official"] = Field("corrected", description="dpg: official has the script's quirks")
    prompt_count: Count | None = Field(
        None, description="so many of the benchmark's prompts, evenly spaced and always the same ones; null: all"
    )
    images_per_prompt: Count = 1
    temperature: NonNegative = Field(1.0, description="0 is greedy")
    scorer: ActorsConfig = ActorsConfig()
    detector: DetectorConfig = DetectorConfig()
    judge: JudgeConfig = JudgeConfig()
    diversity: FeaturesConfig | None = Field(
        None, description="measures how different the images are, beside the scores; {} takes the defaults"
    )

    @property
    def models(self) -> list[Path]:
        """Folders and Hugging Face ids that what judges is read from."""
        judge = [Path(self.judge_name)] if self.judge.type == "transformers" else []  # ModelScope finds its own
        judges = {"shapes": [], "geneval": self.detector.files, "geneval2": judge, "dpg": judge}[self.benchmark]
        return judges + (local_clip(self.diversity.model) if self.diversity else [])

    @property
    def judge_name(self) -> str:
        """Folder or id of the visual judge."""
        default = str(GENEVAL2_JUDGE) if self.benchmark == "geneval2" else JUDGES[self.judge.type]
        return str(self.judge.model or default)

    @model_validator(mode="after")
    def _has_its_files(self) -> "BenchmarkConfig":
        if not self.prompts and self.benchmark in ("geneval", "geneval2"):
            raise ValueError(f"`prompts` is needed: the file of {self.benchmark}'s prompts")
        if self.benchmark == "geneval2" and self.judge.type != "transformers":
            raise ValueError(f"judge.type: geneval2 needs probabilities, which {self.judge.type} does not give")
        if self.benchmark == "dpg":
            if not self.questions:
                raise ValueError("`questions` is needed: the file of dpg's questions")
            if self.images_per_prompt != 4:
                raise ValueError(f"images_per_prompt: dpg's grids hold 4 images, found {self.images_per_prompt}")
        return self


class EvaluationConfig(BenchmarkConfig):
    """Evaluation during training, with the weights of the step: of GRPO and DPO on the rollout engines."""

    every: Count = Field(description="steps between evaluations; the last step always has one")

    @property
    def files(self) -> list[Path]:
        """Files, folders and Hugging Face ids that it reads."""
        return [path for path in (self.prompts, self.questions, *self.models) if path]


class SupervisedEvaluationConfig(EvaluationConfig):
    """Evaluation during pretraining and SFT, which have no rollout engines."""

    engine: EngineConfig | None = Field(
        None, description="engines of its own, with actors of their own; null: the learner draws, between its steps"
    )
    learner_contexts: Annotated[int, Field(ge=2)] = Field(
        16, description="without engine: contexts that a learner decodes at a time; a guided image has two"
    )


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
