import numpy as np
import torch
from scipy.stats import chisquare

from simplear_rl.policy.sampling import draw_codes, uniform_stream


def test_stream_depends_on_every_part_of_the_seed_and_nothing_else():
    assert np.array_equal(uniform_stream((0, 1, 2, 3), 64), uniform_stream([0, 1, 2, 3], 64))
    assert np.array_equal(uniform_stream((0, 1, 2, 3), 64), uniform_stream((0, 1, 2, 3), 128)[:64])
    streams = {tuple(uniform_stream(seed, 4)) for seed in np.ndindex(3, 3, 3, 3)}
    assert len(streams) == 81


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.2, 0.0, 0.25, 0.05])
    uniforms = torch.from_numpy(uniform_stream((7,), 20_000))
    codes = draw_codes(probabilities.log().expand(len(uniforms), -1), uniforms)
    counts = torch.bincount(codes, minlength=5).numpy()
    assert counts[2] == 0
    possible = [0, 1, 3, 4]
    assert chisquare(counts[possible], probabilities.numpy()[possible] * 20_000).pvalue > 0.01


def test_edges_of_the_unit_interval():
    log_probs = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log().expand(3, -1)
    drawn = draw_codes(log_probs, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64))
    assert drawn.tolist() == [1, 2, 2]
