from itertools import combinations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from simplear_rl.algorithms.diversity import diversity


def test_it_is_the_mean_distance_of_all_pairs():
    features = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    pairs = [1 - cosine_similarity(a, b, dim=0) for a, b in combinations(features, 2)]
    assert diversity(features) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)
    assert diversity(3 * features) == pytest.approx(diversity(features))  # lengths do not count


@pytest.mark.parametrize(
    ("features", "expected"), [(torch.ones(4, 3), 0), (torch.eye(4), 1), (torch.eye(2)[[0, 0, 1]], 2 / 3)]
)
def test_images_that_are_the_same_have_none_and_unrelated_ones_have_one(features, expected):
    assert diversity(features) == pytest.approx(expected, abs=1e-12)


def test_one_image_has_no_pair():
    with pytest.raises(ValueError, match="at least two images, found 1"):
        diversity(torch.ones(1, 3))
