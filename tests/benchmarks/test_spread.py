"""Diversity beside the scores: a policy that draws one picture per prompt is found, however good the picture is."""

import numpy as np
import pytest
import torch

from simplear_rl.algorithms.diversity import vendi_score
from simplear_rl.benchmarks.geneval_files import GenEval
from simplear_rl.benchmarks.output import open_folder, unfinished, write_results
from simplear_rl.benchmarks.scorer import BenchmarkScorer
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.load import load_config
from simplear_rl.errors import UserError
from simplear_rl.shapes.world import evaluation_prompts, render, sample_scene


def test_vendi_counts_different_images():
    assert vendi_score(torch.eye(5)) == pytest.approx(5)
    assert vendi_score(torch.ones(7, 3)) == pytest.approx(1)
    assert vendi_score(torch.eye(3).repeat(4, 1)) == pytest.approx(3)  # more images than features
    values = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(values.double(), dim=-1)
    found = np.linalg.eigvalsh((unit @ unit.T).numpy() / 6)
    assert vendi_score(values * 3) == pytest.approx(np.exp(-(found * np.log(found)).sum()))


def evaluate(folder, clip, different):
    """Perfect pictures of 12 prompts, four each: all different, or the same four times."""
    values = [f"root={folder}", f"output={folder / 'out'}", "policy=/policy", "images_per_prompt=4"]
    values += [f"diversity.model={clip}", "diversity.weights=null"]
    config = load_config(EvaluateConfig, CONFIGS / "shapes" / "evaluate.yaml", values)
    benchmark, random = GenEval(evaluation_prompts()[::25]), np.random.default_rng(0)
    open_folder(config, benchmark)
    scorer = BenchmarkScorer(config, benchmark, None)
    for i, entry in enumerate(benchmark.entries):
        images = [render(sample_scene(entry, random)) for _ in range(4)]
        benchmark.write(config.images, i, np.stack(images if different else images[:1] * 4))
        scorer.judge(i, config.images, config.output)
    assert unfinished(config, benchmark) == []
    return config, benchmark, write_results(config, benchmark)


def test_a_collapsed_policy_is_found_where_the_score_stays(tmp_path, detector_config):
    _, _, varied = evaluate(tmp_path / "varied", detector_config.clip, different=True)
    config, benchmark, collapsed = evaluate(tmp_path / "collapsed", detector_config.clip, different=False)
    assert varied["scores"]["overall"] == collapsed["scores"]["overall"] == 1
    assert collapsed["scores"]["diversity"] == pytest.approx(0, abs=1e-6)
    assert varied["scores"]["diversity"] > 1e-4  # of a CLIP with random weights
    assert 1 < collapsed["scores"]["vendi"] < varied["scores"]["vendi"] < 48
    low, high = varied["confidence_intervals"]["diversity"]
    assert low < varied["scores"]["diversity"] < high
    assert "vendi" in (config.output / "index.html").read_text(encoding="utf-8")
    (config.output / "features" / "00003.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"00003.npy: cannot be read: .*; remove .*00003.json and start again"):
        write_results(config, benchmark)
