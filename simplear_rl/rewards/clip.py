"""CLIP as a reward: the cosine of image and text features, through open_clip."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import open_clip
import regex
import torch
from open_clip.transform import PreprocessCfg
from torch.nn.functional import normalize

from simplear_rl.config.rewards import ImageTextRewardConfig
from simplear_rl.errors import UserError
from simplear_rl.rewards.preprocess import hpsv2_transform, open_clip_transform, simplear_transform
from simplear_rl.rewards.reward import Columns
from simplear_rl.vision.clip import LOAD_ERRORS, load_clip

CACHED_CAPTIONS = 4096
Value = TypeVar("Value")
TRANSFORMS = {"clip": open_clip_transform, "hpsv2": hpsv2_transform, "simplear": simplear_transform}


class ClipReward:
    """A CLIP model.

    Args:
        config: which one and how; `weight` is not applied.

    Raises:
        UserError: the model or its weights cannot be loaded; never falls back to random weights.
    """

    def __init__(self, config: ImageTextRewardConfig, device: str = "cpu"):
        self.config, self.name, self.device = config, config.name, device
        try:
            self.model = self._load()
        except LOAD_ERRORS as error:
            weights = f" with weights {config.weights}" if config.weights else ""
            raise UserError(f"reward {self.name}: cannot load {config.model}{weights}: {error}") from error
        self.model.eval()
        self.dtype = getattr(torch, config.dtype)
        transform = TRANSFORMS[config.type if config.preprocess == "model" else config.preprocess]
        settings = PreprocessCfg(**self.model.visual.preprocess_cfg)
        self.preprocess = transform(settings, device)
        self.tokenize = _text_tokenizer(config.model)
        self.context_length = self.model.context_length
        self.captions: dict[str, torch.Tensor] = {}  # normalised features [D] of captions already seen
        self.cut: dict[str, bool] = {}  # whether they are too long

    def too_long(self, texts: list[str]) -> list[bool]:
        """Of each text, whether the model reads only its beginning: its tokenizer cuts it silently."""
        return _remembered(self.cut, texts, self._are_cut)

    def check(self, texts: list[str], columns: Columns = ()) -> list[str]:
        """The texts that are scored by their beginning alone (`long_text: truncate`).

        Raises UserError if there are any and `long_text` is `refuse`.
        """
        cut = [text for text, is_cut in zip(texts, self.too_long(texts), strict=True) if is_cut]
        if cut and self.config.long_text == "refuse":
            raise UserError(
                f"{cut[0]!r} is longer than the {self.context_length} tokens of reward {self.name}, so are "
                f"{len(cut) - 1} more of {len(texts)} texts; with `long_text: truncate` their beginning is scored"
            )
        return cut

    def score(self, images: np.ndarray, texts: list[str], columns: Columns = ()) -> np.ndarray:
        """Rewards float32 [B] of uint8 images [B, H, W, 3] for their texts.

        Raises UserError if a text is too long, see `check`.
        """
        return self.score_features(self.image_features(images), texts)

    @torch.no_grad()
    def image_features(self, images: np.ndarray) -> torch.Tensor:
        """Features of length 1, float32 [B, D], of uint8 images [B, H, W, 3]."""
        parts = []
        for start in range(0, len(images), self.config.batch_size):
            batch = images[start : start + self.config.batch_size]
            pixels = torch.stack([self.preprocess(image) for image in batch]).to(self.dtype)
            # In half precision the features are rounded, their cosine is not.
            parts.append(normalize(self.model.encode_image(pixels).float(), dim=-1))
        return torch.cat(parts)

    @torch.no_grad()
    def score_features(self, features_BD: torch.Tensor, texts: list[str]) -> np.ndarray:
        """Rewards float32 [B] of images with these features, see `score`."""
        return (features_BD * self.text_features(texts)).sum(-1).cpu().numpy()

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> torch.Tensor:
        """Features of length 1, float32 [B, D], of texts."""
        return torch.stack(_remembered(self.captions, texts, self._encoded))

    def _are_cut(self, texts: list[str]) -> list[bool]:
        length, texts = self.context_length, self._as_read(texts)
        padding, *whole = self.tokenize(["", *texts], context_length=2 * length)
        read = self.tokenize(texts)
        return [
            bool((ids[:length] != ids_read).any() or (ids[length:] != padding[length:]).any())
            for ids, ids_read in zip(whole, read, strict=True)
        ]

    def _encoded(self, texts: list[str]) -> torch.Tensor:
        """Features of length 1, float32 [B, D]."""
        self.check(texts)
        parts, texts = [], self._as_read(texts)
        for start in range(0, len(texts), self.config.batch_size):
            part = self.tokenize(texts[start : start + self.config.batch_size]).to(self.device)
            parts.append(normalize(self.model.encode_text(part).float(), dim=-1))
        return torch.cat(parts)

    def _as_read(self, texts: list[str]) -> list[str]:
        return [self.config.text_prefix + text for text in texts]

    def _load(self) -> open_clip.CLIP:
        return load_clip(self.config.model, self.config.weights, self.config.dtype, self.device)[0]


def _remembered(
    known: dict[str, Value], texts: list[str], compute: Callable[[list[str]], Iterable[Value]]
) -> list[Value]:
    """A value of each text. `known` has some of them, the others are computed and kept there."""
    if len(known) > CACHED_CAPTIONS:
        known.clear()
    if new := [text for text in dict.fromkeys(texts) if text not in known]:
        known.update(zip(new, compute(new), strict=True))
    return [known[text] for text in texts]


def _text_tokenizer(model: str) -> Callable[..., torch.Tensor]:
    """The model's own text tokenizer, to which control tokens that are spelled in a text are characters like others.

    It would otherwise stop at `<end_of_text>`.
    """
    tokenize = open_clip.get_tokenizer(model)
    if isinstance(tokenize, open_clip.SimpleTokenizer):
        control = "|".join(tokenize.decoder[i] for i in tokenize.all_special_ids)
        tokenize.pat = regex.compile(tokenize.pat.pattern.removeprefix(f"{control}|"), tokenize.pat.flags)
        tokenize.cache.clear()
    else:
        tokenize.tokenizer.split_special_tokens = True
    return tokenize
