"""Local files of reward models, looked at before any actor starts."""

import json

from simplear_rl.config import RewardConfig
from simplear_rl.errors import UserError
from simplear_rl.files import count_weights


def check_files(config: RewardConfig) -> None:
    """Raise UserError if a local file of a reward model is missing or damaged, as far as that shows without loading."""
    for path in config.files:
        if path.is_dir():
            settings = path / "open_clip_config.json"
            try:
                json.loads(settings.read_text())
            except (OSError, ValueError) as error:
                raise UserError(f"{settings}: expected the configuration of an open_clip model: {error}") from error
            if not any(path.glob("*.bin")) or any(path.glob("*.safetensors")):
                count_weights(path)
        elif not path.stat().st_size:
            raise UserError(f"{path}: empty, expected the weights of a reward model")
