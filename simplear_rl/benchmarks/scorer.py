"""The benchmarks by name, with the models that judge, and what a scorer actor does with a prompt's images."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from simplear_rl.benchmarks.benchmark import Benchmark
from simplear_rl.benchmarks.dpg_files import DpgBench
from simplear_rl.benchmarks.dpg_questions import read_dpg_prompts, read_questions
from simplear_rl.benchmarks.geneval2_files import GenEval2, read_entries
from simplear_rl.benchmarks.geneval_files import GenEval
from simplear_rl.benchmarks.geneval_metadata import read_metadata
from simplear_rl.benchmarks.output import write_verdict
from simplear_rl.benchmarks.spread import write_features
from simplear_rl.config.benchmarks import EvaluateConfig, FeaturesConfig
from simplear_rl.device import default_device
from simplear_rl.errors import UserError
from simplear_rl.files import writing_to
from simplear_rl.policy.rollouts import Rollout
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.shapes.world import evaluation_prompts
from simplear_rl.tokenizers.cosmos import CosmosTokenizer
from simplear_rl.vision.detection import Detector
from simplear_rl.vision.judges import VisualJudge
from simplear_rl.vision.shapes_detector import ShapesDetector

Entry = TypeVar("Entry")


def _shapes(config: EvaluateConfig) -> Benchmark:
    return GenEval(_subset(evaluation_prompts(), config.prompt_count))


def _geneval(config: EvaluateConfig) -> Benchmark:
    assert config.prompts, "the schema asks for it"
    return GenEval(_subset(read_metadata(config.prompts), config.prompt_count))


def _geneval2(config: EvaluateConfig) -> Benchmark:
    assert config.prompts, "the schema asks for it"
    return GenEval2(_subset(read_entries(config.prompts), config.prompt_count), config.judge_name)


def _dpg(config: EvaluateConfig) -> Benchmark:
    assert config.questions, "the schema asks for it"
    prompts = read_dpg_prompts(config.prompts or config.questions)
    questions = read_questions(config.questions, prompts, config.rules)
    prompts = dict(_subset(list(prompts.items()), config.prompt_count))
    questions = {item: questions[item] for item in prompts}
    return DpgBench(prompts, questions, config.rules, config.judge_name, config.image_size)


def _subset(prompts: list[Entry], count: int | None) -> list[Entry]:
    """`count` of the prompts, evenly spaced, or all. Raises UserError if there are fewer."""
    if count is None:
        return prompts
    if count > len(prompts):
        raise UserError(f"prompt_count: {count}, the benchmark has {len(prompts)} prompts")
    return [prompts[i * len(prompts) // count] for i in range(count)]


def _detector(config: EvaluateConfig, device: str) -> Detector:
    from simplear_rl.vision.coco_detector import CocoDetector  # Transformers' models take seconds to import

    return CocoDetector(config.detector, device)


def _judge(config: EvaluateConfig, device: str) -> VisualJudge:
    from simplear_rl.vision.vqa import MplugJudge, TransformersJudge  # as above

    if config.judge.type == "mplug":
        return MplugJudge(config.judge_name, device)
    return TransformersJudge(Path(config.judge_name), config.judge.batch_size, config.judge.dtype, device)


def _features(config: FeaturesConfig, device: str) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    from simplear_rl.vision.features import ImageFeatures  # so does open_clip

    return ImageFeatures(config, device)


BENCHMARKS: dict[str, Callable[[EvaluateConfig], Benchmark]] = {
    "shapes": _shapes,
    "geneval": _geneval,
    "geneval2": _geneval2,
    "dpg": _dpg,
}
MODELS: dict[str, Callable[[EvaluateConfig, str], Any]] = {
    "shapes": lambda config, device: ShapesDetector(),
    "geneval": _detector,
    "geneval2": _judge,
    "dpg": _judge,
}


class BenchmarkScorer:
    """The visual tokenizer, where images come as codes of `layout`, the benchmark's model, and that of diversity."""

    def __init__(self, config: EvaluateConfig, benchmark: Benchmark, layout: ImageLayout | None):
        self.config, self.benchmark, self.layout = config, benchmark, layout
        device = default_device()
        self.tokenizer = CosmosTokenizer(config.tokenizer, device) if layout else None
        self.model = MODELS[config.benchmark](config, device)
        self.features = _features(config.diversity, device) if config.diversity else None

    def judge_rollout(self, rollout: Rollout, output: Path) -> int:
        """Write the images of a rollout below `output`, in the benchmark's layout, and judge them; see `judge`.

        Raises UserError, see `writing_to`.
        """
        assert self.tokenizer and self.layout
        images = self.tokenizer.decode(rollout.codes, self.layout.rows, self.layout.columns)
        with writing_to(output / "images"):
            self.benchmark.write(output / "images", rollout.prompt.index, images)
        return self.judge(rollout.prompt.index, output / "images", output)

    def judge(self, index: int, folder: Path, output: Path) -> int:
        """Judge a prompt's images in `folder` and write the verdict below `output`; returns their number.

        Raises UserError if they are not all there and `allow_missing` is false.
        """
        samples, problems = self.benchmark.load(folder, index, self.config.images_per_prompt)
        if problems and not self.config.allow_missing:
            raise UserError("\n".join(problems))
        rows = self.benchmark.judge(index, samples, self.model) if samples else []
        for row, sample in zip(rows, samples, strict=True):
            height, width, _ = sample.pixels.shape
            row["filename"] = os.path.relpath(folder / sample.name, output)
            row |= {"index": index, "sample": sample.number}
            row |= {"width": width, "height": height, "checksum": sample.checksum}
        if self.features and samples:
            write_features(output, index, self.features([sample.pixels for sample in samples]))
        write_verdict(output, index, rows)  # last: it says that all is there
        return len(rows)
