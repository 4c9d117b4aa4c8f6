"""The answers as OpenAI's types have them; `index`, `seed`, `codes` and `weight_version` are extensions."""

import json
import time
from base64 import b64encode
from typing import Any

from simplear_rl.serving.drawing import Progress
from simplear_rl.serving.errors import ApiError
from simplear_rl.serving.requests import Generation


class Answers:
    """Answers about pictures of one size and number of codes."""

    def __init__(self, size: str, tokens: int):
        self.size, self.tokens = size, tokens

    def image(self, asked: Generation, progress: Progress, picture: bytes, url: str | None = None) -> dict[str, Any]:
        """An entry of `data`."""
        content = {"url": url} if url else {"b64_json": b64encode(picture).decode()}
        return content | self._about(asked, progress)

    def whole(self, asked: Generation, images: list[dict[str, Any]]) -> dict[str, Any]:
        """https://platform.openai.com/docs/api-reference/images/object."""
        return {
            "created": int(time.time()),
            "background": "opaque",
            "output_format": asked.body.output_format,
            "size": self.size,
            "data": images,
            "usage": self._usage([len(image.prompt_ids) for image in asked.images]),
        }

    def event(self, asked: Generation, index: int, partial: int, progress: Progress, picture: bytes) -> bytes:
        """https://platform.openai.com/docs/api-reference/images-streaming, a partial picture or the whole one."""
        whole = len(progress.codes) == self.tokens
        content: dict[str, Any] = {
            "type": "image_generation.completed" if whole else "image_generation.partial_image",
            "b64_json": b64encode(picture).decode(),
            "created_at": int(time.time()),
            "background": "opaque",
            "output_format": asked.body.output_format,
            "quality": "auto",
            "size": self.size,
            "index": index,
        }
        if whole:
            content["usage"] = self._usage([len(asked.images[index].prompt_ids)])
            content |= self._about(asked, progress)
        else:
            content["partial_image_index"] = partial
        return _event(content["type"], content)

    def failure(self, error: ApiError) -> bytes:
        """What a stream that cannot go on ends with."""
        return _event("error", {"type": "error"} | error.body())

    def _about(self, asked: Generation, progress: Progress) -> dict[str, Any]:
        about: dict[str, Any] = {"seed": asked.seed, "weight_version": progress.weight_version}
        if asked.body.return_codes:
            about["codes"] = progress.codes.tolist()
        return about

    def _usage(self, prompts: list[int]) -> dict[str, Any]:
        text, image = sum(prompts), len(prompts) * self.tokens
        return {
            "input_tokens": text,
            "input_tokens_details": {"text_tokens": text, "image_tokens": 0},
            "output_tokens": image,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": image},
            "total_tokens": text + image,
        }


def _event(name: str, content: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n".encode()
