"""GenEval 2 as a reward: a visual judge answers the questions of the training prompts about their samples."""

import numpy as np

from simplear_rl.benchmarks.geneval2_files import ask
from simplear_rl.config.rewards import GenEval2RewardConfig
from simplear_rl.rewards.files import read_questions, require_questions
from simplear_rl.rewards.reward import Columns, WholeText
from simplear_rl.vision.judges import ProbabilityJudge


class GenEval2Reward(WholeText):
    """Soft-TIFA of an image, from 0 to 1: the mean of the probabilities of its prompt's expected answers.

    Raises:
        UserError: the file of questions is bad, or the judge cannot be loaded.
    """

    def __init__(self, config: GenEval2RewardConfig, device: str = "cpu"):
        from simplear_rl.vision.vqa import TransformersJudge  # Transformers' models take seconds to import

        self.config, self.entries = config, read_questions(config)
        self.judge: ProbabilityJudge = TransformersJudge(config.judge, config.batch_size, config.dtype, device)

    def check(self, texts: list[str], columns: Columns = ()) -> list[str]:
        """No text is cut. Raises UserError if there are no questions for one."""
        require_questions(self.entries, self.config, texts)
        return []

    def score(self, images: np.ndarray, texts: list[str], columns: Columns = ()) -> np.ndarray:
        """Rewards float32 [B] of uint8 images [B, H, W, 3] for their texts. Raises UserError, see `check`."""
        self.check(texts)
        means = ask(self.judge, list(images), [self.entries[text] for text in texts])
        chosen = [geometric if self.config.mean == "geometric" else arithmetic for _, arithmetic, geometric in means]
        return np.array(chosen, np.float32)
