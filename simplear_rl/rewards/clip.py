"""CLIP as a reward: the cosine of image and text features, through open_clip."""

from functools import lru_cache

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors import SafetensorError

from simplear_rl.errors import UserError

CACHED_CAPTIONS = 4096


class ClipReward:
    """A CLIP model.

    Args:
        model: an open_clip name, or `local-dir:FOLDER` for a folder in open_clip's saved format.
        weights: open_clip's tag or a file, for a named model.
        batch_size: images per forward pass.
    """

    def __init__(self, model: str, weights: str | None = None, device: str = "cpu", batch_size: int = 64):
        self.name, self.device, self.batch_size = model, device, batch_size
        try:
            self.model, _, self.preprocess = open_clip.create_model_and_transforms(model, weights, device=device)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise UserError(f"{model}: open_clip cannot load this model: {error}") from error
        self.model.eval()
        self.tokenize = open_clip.get_tokenizer(model)
        self.context_length = self.model.context_length
        self.text_features = lru_cache(CACHED_CAPTIONS)(self._text_features)

    def check(self, texts: list[str]) -> None:
        """Raise UserError if the model reads only the beginning of a text: its tokenizer would cut it silently."""
        ids = self.tokenize(["", *texts], context_length=2 * self.context_length)[:, self.context_length :]
        cut = (ids[1:] != ids[0]).any(-1).nonzero()
        if len(cut):
            raise UserError(
                f"{texts[cut[0, 0]]!r} is longer than the {self.context_length} tokens of reward {self.name}"
            )

    @torch.no_grad()
    def score(self, images: np.ndarray, texts: list[str]) -> np.ndarray:
        """Rewards float32 [B] of uint8 images [B, H, W, 3] for their texts, after the model's own preprocessing.

        Raises UserError if a text is too long, see `check`.
        """
        rewards = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            pixels = torch.stack([self.preprocess(Image.fromarray(image)) for image in images[part]]).to(self.device)
            image_features = self.model.encode_image(pixels, normalize=True)
            text_features = torch.stack([self.text_features(text) for text in texts[part]])
            rewards.append((image_features * text_features).sum(-1).float().cpu().numpy())
        return np.concatenate(rewards)

    def _text_features(self, text: str) -> torch.Tensor:
        self.check([text])
        return self.model.encode_text(self.tokenize([text]).to(self.device), normalize=True)[0]
