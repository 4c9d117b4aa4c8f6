import numpy as np
import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

from simplear_rl.learning.flops import ModelSize, peak_flops, throughput, training_flops
from simplear_rl.policy.model import load_policy


def test_palm_540b_has_the_utilisation_that_the_paper_reports():
    """PaLM 540B (arXiv 2204.02311, table 3): 238.3 K tokens/s on 6,144 TPU v4 of 275 TFLOP/s: 46.2 %."""
    size = ModelSize(weights=540_350_000_000, layers=118, heads=48, head_size=256)
    lengths = np.full(2048, 2048)
    seconds = lengths.sum() / 238_300
    assert throughput(size, lengths, seconds, 6144 * 275e12)["mfu"] == pytest.approx(0.462, abs=0.001)


def test_attention_counts_each_sequence_at_its_own_length():
    size = ModelSize(weights=100, layers=2, heads=3, head_size=4)
    assert training_flops(size, np.array([10, 20])) == 6 * 100 * 30 + 12 * 2 * 3 * 4 * (10**2 + 20**2)


def test_weights_are_those_of_matrix_products_the_head_once(policy):
    model, _ = load_policy(policy)
    size = ModelSize.of(model)
    assert (size.layers, size.heads, size.head_size) == (2, 2, 32)
    rows = model.config.vocab_size
    assert size.weights == 64 * rows + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    untied = Qwen2ForCausalLM(Qwen2Config(**(model.config.to_dict() | {"tie_word_embeddings": False})))
    assert ModelSize.of(untied) == size


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA T4", None),
    ],
)
def test_devices_are_found_by_their_names(device, peak):
    assert peak_flops(device) == peak


def test_without_a_known_peak_there_is_no_utilisation():
    assert throughput(ModelSize(1, 1, 1, 1), np.array([10, 20]), 0.5, None) == {"tokens_per_second": 60.0}
