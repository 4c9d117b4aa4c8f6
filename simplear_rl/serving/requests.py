"""What a client asks for: OpenAI's parameters of an image generation and the extensions, checked."""

import json
import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from simplear_rl.config.serving import ServeConfig
from simplear_rl.data.prompts import check_prompt
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import ImageLayout, PromptEncoder
from simplear_rl.serving.batches import ImageRequest
from simplear_rl.serving.errors import ApiError

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
LOWEST_TEMPERATURE = 0.01  # logits divided by less are not finite in float32
FIRST_PARTIAL = 1 / 5  # of an image's rows; the first picture comes before a quarter of the time


def _computable(temperature: float) -> float:
    if 0 < temperature < LOWEST_TEMPERATURE:
        raise ValueError(f"expected 0 (greedy) or at least {LOWEST_TEMPERATURE}")
    return temperature


class Body(BaseModel):
    """https://platform.openai.com/docs/api-reference/images/create; the last eight are extensions."""

    model_config = ConfigDict(extra="forbid")

    prompt: StrictStr | list[StrictStr]
    model: StrictStr | None = None
    n: StrictInt = Field(1, ge=1)
    size: StrictStr = "auto"
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    user: StrictStr | None = Field(None, max_length=256)
    stream: StrictBool = False
    partial_images: StrictInt = Field(0, ge=0, le=16)

    negative_prompt: StrictStr | None = None
    guidance_scale: Number = Field(1.0, ge=0, le=100)
    seed: StrictInt | None = Field(None, ge=0, lt=2**63)
    temperature: Annotated[Number, AfterValidator(_computable)] = Field(1.0, ge=0, le=100)
    top_k: StrictInt = Field(0, ge=0, lt=2**31)
    top_p: Number = Field(1.0, gt=0, le=1)
    return_codes: StrictBool = False


@dataclass(frozen=True)
class Generation:
    """A request that can be drawn."""

    body: Body
    images: list[ImageRequest]  # n for each prompt
    prompts: list[str]
    seed: int

    def partial_stops(self, layout: ImageLayout) -> list[int]:
        """Numbers of codes, whole rows, after which a picture is shown; fewer than asked for where rows are few."""
        count = self.body.partial_images
        first = min(FIRST_PARTIAL, 1 / (count + 1))
        shares = [first + k * (1 - first) / count for k in range(count)]
        rows = {max(1, int(share * layout.rows + 1e-9)) for share in shares}
        return [row * layout.columns for row in sorted(rows) if row < layout.rows]


class Reader:
    """Reads bodies for one policy. `size` is that of its pictures, for example "512x512"."""

    def __init__(self, config: ServeConfig, encode: PromptEncoder, size: str):
        self.config, self.encode, self.size = config, encode, size

    def __call__(self, content: bytes) -> Generation:
        """What a body asks for.

        Raises:
            ApiError: 400, 404 or 422, with the parameter at fault.
        """
        body = _parse(content)
        self._check(body)
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        prompts = [self._prompt(text, "prompt") for text in texts]
        guided = body.guidance_scale != 1
        other = None
        if guided:
            other = self.encode.null
            if body.negative_prompt:
                other = self.encode(self._prompt(body.negative_prompt, "negative_prompt"))
        sampling = Sampling(body.temperature, body.top_k, body.top_p, body.guidance_scale)
        seed = secrets.randbits(31) if body.seed is None else body.seed
        images = [
            ImageRequest(self.encode(text), other, sampling, (seed, 0, i, k))
            for i, text in enumerate(prompts)
            for k in range(body.n)
        ]
        return Generation(body, images, prompts, seed)

    def _check(self, body: Body) -> None:
        if body.model not in (None, self.config.name):
            raise ApiError(
                404, f"model {body.model!r}: this server has {self.config.name!r}", "model", "model_not_found"
            )
        if body.size not in ("auto", self.size):
            raise ApiError(400, f"size {body.size!r}: this policy draws {self.size}", "size", "invalid_size")
        if body.stream and body.response_format == "url":
            raise ApiError(400, "a stream carries pictures: response_format must be b64_json", "response_format")
        if body.partial_images and not body.stream:
            raise ApiError(400, "partial_images: only a stream has them; set stream", "partial_images")
        if body.negative_prompt and body.guidance_scale == 1:
            raise ApiError(
                400, "negative_prompt: has no effect without guidance; set guidance_scale", "negative_prompt"
            )
        prompts = 1 if isinstance(body.prompt, str) else len(body.prompt)
        most = self.config.limits.images_per_request
        if not 1 <= prompts * body.n <= most:
            raise ApiError(400, f"{prompts} prompts times n={body.n}: expected 1 to {most} images", "n")

    def _prompt(self, text: str, param: str) -> str:
        try:
            return check_prompt(text, self.encode)
        except ValueError as error:
            raise ApiError(400, f"{param}: {error}", param, "invalid_prompt") from None


def _parse(content: bytes) -> Body:
    try:
        values: Any = json.loads(content)
        json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is no text that an answer could name
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, f"the body: expected a JSON object, found {type(values).__name__}", code="invalid_json")
    try:
        return Body.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        names = [str(fault["loc"][0]) for fault in faults if fault["loc"]]
        lines = dict.fromkeys(f"{name}: {fault['msg']}" for name, fault in zip(names, faults, strict=True))
        raise ApiError(422, "; ".join(lines), names[0], "invalid_value") from None
