"""Looks for the models that judge images before any actor starts, as far as that is told without loading them.

A folder that is not there at all is none of its faults: it is among the `files` or `models` of the configuration.
"""

import json
import os
from importlib.util import find_spec
from pathlib import Path

from simplear_rl.config.benchmarks import BenchmarkConfig, DetectorConfig
from simplear_rl.errors import UserError, all_faults
from simplear_rl.files import is_hub_id, require_from_hub, require_weights

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # of a model of Transformers
BRING_WEIGHTS = ("local-dir:", "hf-hub:")
CLIP_SETTINGS = "open_clip_config.json"
CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
NEEDS_MODELSCOPE = (
    "needs ModelScope with its multi-modal requirements, best in an environment of its own: "
    "pip install 'modelscope[multi-modal]'"
)


def require_judge(config: BenchmarkConfig) -> None:
    """Raise UserError unless what judges the images of a benchmark is there, and what measures their diversity."""
    if found := config.diversity:
        require_clip("diversity.model", found.model, found.weights)
    if config.benchmark == "geneval":
        require_detector(config.detector)
    elif config.benchmark == "dpg" and config.judge.type == "mplug":
        if find_spec("modelscope") is None:
            raise UserError(f"judge {config.judge_name} {NEEDS_MODELSCOPE}")
    elif config.benchmark in ("dpg", "geneval2"):
        require_model("judge", Path(config.judge_name))


def require_detector(config: DetectorConfig) -> None:
    """Raise UserError unless the models of GenEval's detector are there."""
    all_faults(
        lambda: require_model("detector", config.model),
        lambda: require_clip("detector.clip", config.clip, config.clip_weights),
    )


def require_clip(what: str, model: str, weights: str | None) -> None:
    """Raise UserError unless a model of open_clip is there. `what` it is; `model` and `weights`: see `load_clip`."""
    require_network(what, model)
    if not model.startswith(BRING_WEIGHTS) and not os.path.isfile(weights or ""):
        _require_tag(what, model, weights or "")


def require_network(what: str, model: str) -> None:
    """Raise UserError unless open_clip finds a network that is called `model`."""
    kind, _, place = model.partition(":")
    if kind == "local-dir":
        _require_clip_folder(Path(place))
    elif kind == "hf-hub":
        require_from_hub(place, CLIP_SETTINGS)
        require_from_hub(place, *CLIP_WEIGHTS)
    else:
        import open_clip  # takes seconds, and models of a folder do without

        if model.replace("/", "-") not in open_clip.list_models():
            raise UserError(f"{what} {model}: open_clip knows no such model, see open_clip.list_models()")


def _require_tag(what: str, model: str, tag: str) -> None:
    """Raise UserError unless open_clip knows weights of that name, and they are there."""
    import open_clip

    network = model.replace("/", "-")
    if not open_clip.is_pretrained_cfg(network, tag):
        known = ", ".join(open_clip.list_pretrained_tags_by_model(network)) or "none"
        raise UserError(f"{what} {model}: weights {tag!r} are neither a file nor known to open_clip; it knows {known}")
    pretrained, right = open_clip.get_pretrained_cfg(network, tag), f"{network}-quickgelu"
    # open_clip only warns, and computes other features than the weights were trained for.
    quick = (open_clip.get_model_config(network) or {}).get("quick_gelu", False)
    if pretrained.get("quick_gelu") and not quick and right in open_clip.list_models():
        raise UserError(f"{what} {model}: weights {tag!r} were trained with another activation: the model is {right}")
    repository, _, file = pretrained.get("hf_hub", "").rpartition("/")
    if repository and file:
        require_from_hub(repository, str(Path(file).with_suffix(".safetensors")), file)
    elif repository:
        require_from_hub(repository, *CLIP_WEIGHTS)


def _require_clip_folder(folder: Path) -> None:
    if not os.path.isdir(folder):
        return
    settings = folder / CLIP_SETTINGS
    try:
        json.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{settings}: expected the configuration of an open_clip model: {error}") from error
    if not any(folder.glob("*.bin")) or any(folder.glob("*.safetensors")):
        require_weights(folder)


def require_model(what: str, model: Path) -> None:
    """Raise UserError unless a model of Transformers is in its folder, or in the cache or on the Hub."""
    if is_hub_id(model):
        require_from_hub(str(model), "config.json")
        require_from_hub(str(model), *WEIGHTS)
    elif os.path.exists(model):
        if not (model / "config.json").is_file():
            raise UserError(f"{what} {model}: no config.json there; expected the folder of a model")
        require_weights(model)
