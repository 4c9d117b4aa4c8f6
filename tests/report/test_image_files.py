"""Images that are there already are kept if the same weights drew them."""

import numpy as np
import pytest

from simplear_rl.config.generate import GenerateConfig
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Prompt
from simplear_rl.report.image_files import ImageFiles
from simplear_rl.run import checkpoints

PROMPTS = [Prompt(0, "a"), Prompt(1, "b")]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "policy").mkdir()
    return GenerateConfig(policy=tmp_path / "policy", tokenizer="a/b", prompts="a", output=tmp_path / "out")


def draw(config):
    files = ImageFiles(config)
    files.make_folder()
    for prompt in PROMPTS:
        files.write(prompt, np.zeros((1, 8, 8, 3), np.uint8))


def test_images_of_other_weights_at_the_same_path_are_refused(config, monkeypatch):
    weights = config.policy / "model.safetensors"
    weights.write_bytes(b"first")
    draw(config)
    weights.write_bytes(b"again")
    with pytest.raises(UserError, match=r"was drawn with weights_sha256 '\w{64}', not '\w{64}'"):
        ImageFiles(config).complete(PROMPTS[0])
    weights.write_bytes(b"first")
    read, reads = checkpoints._sha256, []
    monkeypatch.setattr(checkpoints, "_sha256", lambda file: reads.append(file) or read(file))
    files = ImageFiles(config)
    assert all(map(files.complete, PROMPTS)) and reads == [weights]


def test_images_that_do_not_say_their_weights_are_kept(config):
    """As those of older versions."""
    draw(config)
    (config.policy / "model.safetensors").write_bytes(b"first")
    assert ImageFiles(config).complete(PROMPTS[0])
