"""Rewards whose packages clash with ours."""

from importlib.metadata import version

import numpy as np
import pytest

from actors.isolated import IsolatedReward, build_reward
from simplear_rl.config.rewards import PythonRewardConfig
from simplear_rl.errors import UserError
from simplear_rl.rewards.reward import UnscoredError

CODE = """\
from importlib.metadata import version

def major(images, prompts):
    if prompts[0] == "fails":
        raise ValueError("no face")
    return [float(version("six").split(".")[1])] * len(images)
"""


@pytest.mark.slow
def test_a_reward_has_packages_of_its_own(ray_cluster, tmp_path):
    (tmp_path / "my_reward.py").write_text(CODE)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    config = PythonRewardConfig(function=f"{tmp_path}/my_reward.py:major", pip=["six==1.16.0"])
    reward = build_reward(config, "cpu")
    assert isinstance(reward, IsolatedReward)
    assert reward.check(["a"]) == []
    assert reward.score(images, ["a"] * 2).tolist() == [16, 16]
    assert version("six") != "1.16.0"
    with pytest.raises(UnscoredError, match=r"reward major .*: ValueError: no face \(my_reward.py, line 5\)$"):
        reward.score(images, ["fails"] * 2)
    with pytest.raises(
        UserError,
        match=r"reward major \(.*\): its environment cannot be made: ERROR: Could not find .*no-such-package[^\n]*$",
    ):
        IsolatedReward(config.model_copy(update={"pip": ["no-such-package-of-this-name==1"]}))
