"""Where text ids end and visual ids begin, and how a caption becomes a prompt."""

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Tokenizer

from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Draw
from simplear_rl.tokenizers.cosmos import CODES, read_geometry

MADE_BY = "a stage writes its policy to final, `python -m simplear_rl.create_policy --source` makes one to start from"
# Appended to the text tokenizer in this order (SimpleAR, arXiv 2504.11455, published code).
SPECIAL_TOKENS = ("<|t2i|>", "<|i2t|>", "<|soi|>", "<|vtokens|>", "<|t2v|>", "<|v2t|>", "<|sov|>")


@dataclass(frozen=True)
class ImageLayout:
    """What the policy must know of images; stored under `image_layout` in the model's config.json.

    A visual token id is `visual_offset + code`, with 0 <= code < codebook_size, in raster order.
    """

    visual_offset: int
    codebook_size: int
    rows: int
    columns: int
    prompt_prefix: str

    @property
    def tokens(self) -> int:
        """Visual tokens of one image."""
        return self.rows * self.columns

    @property
    def vocabulary_size(self) -> int:
        """Text ids and visual ids together."""
        return self.visual_offset + self.codebook_size

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "ImageLayout":
        """Read the layout that travels with a model. Raises UserError if it is absent or does not fit the model."""
        stored = getattr(config, "image_layout", None)
        if stored is None:
            raise UserError(
                f"{config.name_or_path}/config.json: no `image_layout`: this is not an image policy; {MADE_BY}"
            )
        try:
            layout = cls(**stored)
        except TypeError as error:
            raise UserError(f"{config.name_or_path}/config.json: `image_layout` {stored}: {error}") from error
        sizes = layout.visual_offset, layout.codebook_size, layout.rows, layout.columns
        if not all(isinstance(n, int) and n > 0 for n in sizes) or not isinstance(layout.prompt_prefix, str):
            raise UserError(
                f"{config.name_or_path}/config.json: `image_layout` {stored}: expected positive integers and a "
                "prompt_prefix"
            )
        if layout.codebook_size > CODES:
            raise UserError(
                f"{config.name_or_path}/config.json: `image_layout` has {layout.codebook_size} codes, expected {CODES} "
                "at most: they are stored in 16 bits"
            )
        if layout.vocabulary_size > config.vocab_size:
            raise UserError(
                f"{config.name_or_path}/config.json: visual ids end at {layout.vocabulary_size} (offset "
                f"{layout.visual_offset} + {layout.codebook_size} codes), but the model has {config.vocab_size} rows"
            )
        return layout

    def check_codebook(self, codebook_size: int, tokenizer_name: str) -> None:
        """Raise UserError unless the visual tokenizer has exactly this layout's codebook."""
        if codebook_size != self.codebook_size:
            raise UserError(
                f"visual tokenizer {tokenizer_name} has {codebook_size} codes, "
                f"but the policy was built for {self.codebook_size}"
            )


def read_layout(policy: Path, tokenizer: Path | None = None) -> ImageLayout:
    """The layout of a policy folder.

    Raises:
        UserError: there is no policy, it is not one of images, or the visual tokenizer, if one is named, has another
            codebook.
    """
    layout = ImageLayout.of(_read_config(policy))
    if tokenizer:
        layout.check_codebook(read_geometry(tokenizer).codebook_size, str(tokenizer))
    return layout


def read_image_tokenizer(policy: Path) -> str | None:
    """Identity of the visual tokenizer that a policy was trained with, see `read_identity`; None if it does not say."""
    return getattr(_read_config(policy), "image_tokenizer", None)


def _read_config(policy: Path) -> PreTrainedConfig:
    if not (policy / "config.json").is_file():
        raise UserError(f"{policy}: no policy there (config.json is missing); {MADE_BY}")
    try:
        return AutoConfig.from_pretrained(policy)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise UserError(f"{policy}/config.json: not a readable model configuration: {error}") from error


def read_encoder(policy: Path, max_tokens: int | None = None) -> "PromptEncoder":
    """The prompt encoder of a policy folder; prompts are as long as `max_tokens` and the model's positions allow.

    Raises UserError if its text tokenizer is missing or does not fit.
    """
    tokenizer, config = read_tokenizer(policy), _read_config(policy)
    layout = ImageLayout.of(config)
    room = config.max_position_embeddings - layout.tokens
    return PromptEncoder(tokenizer, layout, min(room, max_tokens or room))


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The text tokenizer of a model folder: tokenizer.json or, without it, Qwen2's vocab.json and merges.txt.

    Raises UserError if it is missing or damaged.
    """
    whole = (folder / "tokenizer.json").is_file()
    if not whole and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise UserError(f"{folder}: no text tokenizer there (tokenizer.json is missing, or vocab.json and merges.txt)")
    try:
        return (PreTrainedTokenizerFast if whole else Qwen2Tokenizer).from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        name = "tokenizer.json" if whole else "vocab.json and merges.txt"
        raise UserError(f"{folder}/{name}: not a readable tokenizer: {error}") from error


def _characters_only(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The tokenizer without its control tokens: where one is spelled in a caption, it is characters like others."""
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    without: dict[str, object] = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(values | without))


class PromptEncoder:
    """Caption -> prompt ids: `<|t2i|>` + prefix + caption + `<|soi|>`, at most `max_tokens`.

    Control tokens that are spelled in a caption are characters like others.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, layout: ImageLayout, max_tokens: int):
        if len(tokenizer) != layout.visual_offset:
            raise UserError(
                f"text tokenizer {tokenizer.name_or_path} has {len(tokenizer)} ids, "
                f"but the model's visual ids start at {layout.visual_offset}"
            )
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.characters = _characters_only(tokenizer)
        self.prefix = layout.prompt_prefix
        self.begin, self.end = tokenizer.convert_tokens_to_ids(["<|t2i|>", "<|soi|>"])

    def __call__(self, caption: str, prefix: bool = True) -> list[int]:
        """Prompt ids of one caption, with or without the policy's prefix.

        Raises UserError if the caption is blank or too long.
        """
        text = self.text_ids(caption, prefix)
        if len(text) > self.max_text_tokens:
            room = f"there is room for {self.max_tokens} (max_prompt_tokens)"
            raise UserError(f"prompt {caption!r} has {len(text) + 2} tokens, {room}")
        return self.around(text)

    def text_ids(self, caption: str, prefix: bool = True) -> list[int]:
        """Ids of prefix and caption, however many. Raises UserError if the caption is blank."""
        if not caption.strip():
            raise UserError("empty caption: a prompt needs at least one word")
        return self.characters.encode((self.prefix if prefix else "") + caption, add_special_tokens=False).ids

    def unknown_words(self, caption: str) -> list[str]:
        """Words of a caption that the tokenizer has no id for; a tokenizer of bytes, as Qwen2's, knows all."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            return []
        found = self.characters.encode(caption, add_special_tokens=False)
        return [caption[a:b] for i, (a, b) in zip(found.ids, found.offsets, strict=True) if i == unknown]

    def around(self, text_ids: list[int]) -> list[int]:
        """The prompt with these text ids."""
        return [self.begin, *text_ids, self.end]

    @property
    def max_text_tokens(self) -> int:
        """How many text ids a prompt has room for."""
        return self.max_tokens - 2

    def unconditional(self, draw: Draw) -> list[int] | None:
        """The other context of a guided draw: its negative prompt, or the null prompt; None if it is unguided.

        Raises UserError if the negative prompt is blank or too long.
        """
        if draw.sampling.guidance_scale == 1:
            return None
        return self(draw.negative_prompt, draw.negative_prefix) if draw.negative_prompt else self.null

    @property
    def null(self) -> list[int]:
        """The unconditional prompt of training and guidance: `<|t2i|><|soi|>`."""
        return self.around([])
