"""The PNG files of a generation. Each says how it came about, so that the same command goes on where it was stopped."""

from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from simplear_rl.benchmarks.output import WEIGHTS
from simplear_rl.config.generate import GenerateConfig
from simplear_rl.errors import UserError
from simplear_rl.files import writing_to
from simplear_rl.policy.rollouts import Prompt
from simplear_rl.run.checkpoints import weights_sha256

PNG_END = b"IEND\xaeB`\x82"
SETTINGS = ("seed", "guidance_scale", "negative_prompt", "negative_prefix", "temperature", "top_k", "top_p")


class ImageFiles:
    """Where the images of a configuration's prompts are."""

    def __init__(self, config: GenerateConfig):
        self.config = config

    def make_folder(self) -> None:
        """Make the folder that they are in. Raises UserError, see `writing_to`."""
        with writing_to(self.config.output):
            self.config.output.mkdir(parents=True, exist_ok=True)

    def of(self, prompt: Prompt) -> list[Path]:
        """A prompt's files."""
        return [self.config.output / f"{prompt.index:05d}-{k:02d}.png" for k in range(self.config.images_per_prompt)]

    def complete(self, prompt: Prompt) -> bool:
        """Whether all of them are there, whole, and from the same settings. Raises UserError if one is from others."""
        there = [self._is_there(file, prompt) for file in self.of(prompt)]  # looks at every one
        return all(there)

    def _is_there(self, file: Path, prompt: Prompt) -> bool:
        try:
            if not file.read_bytes().endswith(PNG_END):  # cut short, which Pillow may not notice
                return False
            with Image.open(file) as image:
                image.load()
                found = image.info
        except (OSError, SyntaxError, ValueError):  # there is none, or a damaged one
            return False
        for name, value in self._about(prompt).items():
            if found.get(name) != value and (name in found or name != WEIGHTS):  # older versions wrote none
                raise UserError(
                    f"{file}: was drawn with {name} {found.get(name)!r}, not {value!r}; choose another output folder"
                )
        return True

    def write(self, prompt: Prompt, images_GHW3: np.ndarray) -> None:
        """Write a prompt's images; each file appears only when it is complete. Raises UserError, see `writing_to`."""
        entries = PngInfo()
        for name, value in self._about(prompt).items():
            entries.add_text(name, value)
        for file, image in zip(self.of(prompt), images_GHW3, strict=True):
            partial = file.with_suffix(".partial")
            with writing_to(file):
                Image.fromarray(image).save(partial, "PNG", pnginfo=entries)
                partial.rename(file)

    def small(self, prompt: Prompt, side: int) -> np.ndarray:
        """A prompt's images for a contact sheet, uint8 [G, H, W, 3], of at most `side` pixels."""
        images = []
        for file in self.of(prompt):
            with Image.open(file) as image:
                image.thumbnail((side, side))
                images.append(np.asarray(image))
        return np.stack(images)

    def _about(self, prompt: Prompt) -> dict[str, str]:
        """What an image depends on: its file's text entries."""
        config = self.config
        model = config.policy
        if model.is_symlink():  # `final` is the newest checkpoint
            model = model.parent / model.readlink()
        about = {"engine": config.engine, "model": str(model), "tokenizer": str(config.tokenizer)}
        about |= {name: str(getattr(config, name)) for name in SETTINGS}
        return about | self._weights | {"prompt": prompt.text}

    @cached_property
    def _weights(self) -> dict[str, str]:
        """What the policy's weights are told from others by: read once, however many the prompts are."""
        identity = weights_sha256(self.config.policy)
        return {WEIGHTS: identity} if identity else {}
