import pytest
import torch

from simplear_rl.device import RESERVED, default_device
from simplear_rl.errors import UserError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_actor_whose_gpu_pytorch_does_not_find_says_so(monkeypatch):
    assert default_device() == "cpu"
    monkeypatch.setenv(RESERVED, "0.5")
    with pytest.raises(UserError, match=r"0\.5 GPUs are reserved for this actor, and PyTorch .* finds none: install"):
        default_device()
