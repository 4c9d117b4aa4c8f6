"""Policy folders from what there is: a Qwen2.5 language model, a published SimpleAR checkpoint, or another policy.

Rows are added to the vocabulary here, to whole tensors and on disk, before a learner sees the folder. So they are right
under every ZeRO stage: under ZeRO-3 the embedding is split, and a rank would take the mean of its own part.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from simplear_rl.errors import UserError
from simplear_rl.files import is_there, new_folder, require_writable, resolve
from simplear_rl.policy.model import save_policy
from simplear_rl.policy.prompt_prefixes import DEFAULT_PREFIX
from simplear_rl.policy.vocabulary import SPECIAL_TOKENS, ImageLayout, read_layout, read_tokenizer
from simplear_rl.tokenizers.cosmos import TokenizerGeometry

# Of a Hugging Face repository; pickled weights (.bin) are not even fetched.
FILES = ("*.json", "merges.txt", "*.safetensors")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# What a Qwen2 model is not determined without, and what config.json may state besides. Transformers has defaults for
# the first, those of another model. All else there (class names, a trainer's settings) has no effect on a Qwen2 model.
REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "vocab_size",
)
OPTIONAL = (
    "attention_dropout",
    "hidden_act",
    "initializer_range",
    "layer_types",
    "max_window_layers",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
)


def convert(
    source: Path, output: Path, *, geometry: TokenizerGeometry, resolution: int, prompt_prefix: str | None = None
) -> ImageLayout:
    """Write the policy folder `output`, its weights in the type that they have in `source`.

    A language model gets SimpleAR's special tokens, and for each of them and of the visual codes a row: the mean over
    the rows of its tokenizer's ids (published code). Qwen2.5 pads its embedding (151,936 rows for 151,665 ids): rows
    that belong to no id are neither kept nor averaged. A published checkpoint has all its rows, and of a policy only
    the grid and the prefix change. Generation settings (a repetition penalty, EOS ids) stay behind.

    Args:
        source: folder, or Hugging Face id, with its weights in safetensors files.
        output: folder that does not exist yet.
        geometry: of the visual tokenizer.
        resolution: pixels along each side of an image; the grid has resolution / patch rows and columns.
        prompt_prefix: text before every caption; if None, a policy keeps its own and the others get DEFAULT_PREFIX.

    Returns:
        The layout that the new folder's config.json carries.

    Raises:
        UserError: `output` exists; the grid does not divide the resolution or is too large for the model's positions;
            `source` has no safetensors, is no Qwen2 model with a tied head (the message names the tensors), has
            another codebook or other special tokens.
    """
    if is_there(output):
        raise UserError(f"{output}: exists already; a policy is written to a new folder")
    require_writable(output.parent, "--output")
    if resolution < 1 or resolution % geometry.patch:
        raise UserError(f"resolution {resolution}: expected a multiple of {geometry.patch}, the pixels of a code")
    folder = resolve(source, FILES)
    config, tokenizer = _read_config(folder / "config.json"), read_tokenizer(folder)
    text_ids = len(tokenizer)
    is_language_model = _add_special_tokens(tokenizer, folder)
    prefix = DEFAULT_PREFIX
    if hasattr(config, "image_layout"):
        stored = read_layout(folder)
        prefix = stored.prompt_prefix
        stored.check_codebook(geometry.codebook_size, f"with levels {geometry.levels}")
    layout = ImageLayout(
        visual_offset=len(tokenizer),
        codebook_size=geometry.codebook_size,
        rows=resolution // geometry.patch,
        columns=resolution // geometry.patch,
        prompt_prefix=prefix if prompt_prefix is None else prompt_prefix,
    )
    if layout.tokens >= config.max_position_embeddings:
        raise UserError(
            f"resolution {resolution}: an image has {layout.tokens} codes, but the model has "
            f"{config.max_position_embeddings} positions for prompt and image"
        )
    codes = 0 if is_language_model else layout.codebook_size
    padding = config.vocab_size - text_ids - codes
    if padding < 0 or (padding and not is_language_model):
        raise UserError(
            f"{folder}/config.json: vocab_size is {config.vocab_size}, expected {text_ids + codes}: "
            f"{text_ids} text ids and {codes} codes"
        )
    model = _read_model(folder, config)
    if is_language_model:
        _add_rows(model, text_ids, layout.vocabulary_size)
    model.config.image_layout = asdict(layout)
    model.config.pad_token_id = tokenizer.pad_token_id
    with new_folder(output) as partial:
        save_policy(partial, model, tokenizer, model.state_dict())
    return layout


def _read_config(file: Path) -> Qwen2Config:
    """The architecture that config.json states, whatever class it names, and our image layout if there is one."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        missing = [key for key in REQUIRED if key not in values]
        missing += [] if values.keys() & {"rope_theta", "rope_parameters"} else ["rope_theta"]
        known = {key: values[key] for key in (*REQUIRED, *OPTIONAL, "image_layout", "image_tokenizer") if key in values}
        config = Qwen2Config(**known, bos_token_id=None, eos_token_id=None)
    except (OSError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise UserError(f"{file}: not a readable model configuration: {error}") from error
    if missing:
        raise UserError(f"{file}: not the configuration of a Qwen2 model: {', '.join(missing)} missing")
    return config


def _add_special_tokens(tokenizer: PreTrainedTokenizerFast, folder: Path) -> bool:
    """Append SimpleAR's special tokens where they are not there; says whether they were added."""
    added = tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    count = len(SPECIAL_TOKENS)
    last = list(range(len(tokenizer) - count, len(tokenizer)))
    if added not in (0, count) or tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) != last:
        raise UserError(
            f"{folder}: the text tokenizer has some of {' '.join(SPECIAL_TOKENS)}; "
            "expected none of them, or all, in this order, as its last ids"
        )
    return added == count


def _read_model(folder: Path, config: Qwen2Config) -> Qwen2ForCausalLM:
    weights = _read_weights(folder)
    dtypes = {tensor.dtype for tensor in weights.values()}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.bfloat16}:
        raise UserError(f"{folder}: weights are {', '.join(map(str, dtypes))}; expected float32 or bfloat16 throughout")
    if config.tie_word_embeddings and EMBEDDING in weights:
        weights.setdefault(HEAD, weights[EMBEDDING])
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    try:
        model.load_state_dict(weights, assign=True)  # strict: names what is missing, unexpected or of another shape
    except RuntimeError as error:
        raise UserError(f"{folder}: not the weights of the Qwen2 model in its config.json: {error}") from error
    if not torch.equal(weights[HEAD], weights[EMBEDDING]):
        raise UserError(f"{folder}: {HEAD} differs from {EMBEDDING}; expected a tied head")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return model


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors files."""
    index = folder / "model.safetensors.index.json"
    try:
        if (folder / "model.safetensors").is_file() or not index.is_file():
            files = ["model.safetensors"]
        else:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index}: not a readable index of weight files: {error}") from error
    weights: dict[str, torch.Tensor] = {}
    for name in files:
        try:
            weights |= load_file(folder / name)
        except FileNotFoundError as error:
            raise UserError(
                f"{folder / name}: not found; weights are read from safetensors files alone: "
                "loading pickled ones (.bin) can run code"
            ) from error
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder / name}: not a readable safetensors file: {error}") from error
    return weights


def _add_rows(model: Qwen2ForCausalLM, text_ids: int, rows: int) -> None:
    """Keep the first `text_ids` rows of the embedding and fill it up to `rows` with their mean."""
    kept = model.get_input_embeddings().weight.detach()[:text_ids]
    mean = kept.mean(0, dtype=torch.float32).to(kept.dtype)
    extended = torch.cat([kept, mean.expand(rows - text_ids, -1)])
    model.set_input_embeddings(nn.Embedding.from_pretrained(extended, freeze=False))
    model.config.vocab_size = rows
    model.tie_weights()
