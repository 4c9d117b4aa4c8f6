"""Rewards that a server gives: `type: http`.

A request is a POST with JSON, and so is the answer:

    {"images": [base64 of PNG or JPEG, ...], "prompts": [text, ...], "columns": {"answer": [value, ...], ...}}
    {"scores": [number, ...]}  or, with several rewards, {"scores": {"name": [number, ...], ...}}

`columns` are those of the prompts file. null in place of a number says that the image cannot be scored, and
{"error": text} that none of them can. A status of 400 to 499, except 408 and 429, says that the request itself is
wrong, and ends the run. Whatever else fails is asked again, of the next address, after a wait that doubles: a server
that is restarted loses nothing.
"""

import base64
import json
import logging
import os
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import urllib3
from PIL import Image
from urllib3.exceptions import HTTPError, MaxRetryError

from simplear_rl.config.rewards import HttpRewardConfig
from simplear_rl.errors import UserError
from simplear_rl.rewards.reward import (
    Columns,
    UnscoredError,
    WholeText,
    as_scores,
    try_on_blank_images,
)

log = logging.getLogger(__name__)
LONGEST_WAIT = 30.0  # seconds
TEMPORARY = (408, 429)  # of the statuses below 500


class HttpReward(WholeText):
    """Asks servers for rewards, see above.

    Args:
        config: which; `weight` is not applied.
        device: unused.

    Raises:
        UserError: the variable with the token is not set.
    """

    def __init__(self, config: HttpRewardConfig, device: str = "cpu"):
        self.config, self.about = config, f"reward {config.name}"
        self.http = urllib3.PoolManager(retries=False, timeout=config.timeout_seconds)
        self.names: list[str] | None = None  # of the rewards in its first answer
        self.turn = os.getpid()  # so that actors begin with different servers
        self.headers = {}
        if config.token_variable:
            if not (token := os.environ.get(config.token_variable)):
                raise UserError(f"{self.about}: the environment variable {config.token_variable} is not set")
            self.headers["Authorization"] = f"Bearer {token}"

    def check(self, texts: list[str], columns: Columns = ()) -> list[str]:
        """Let every server score two black images for the first two prompts. Returns nothing: no text is cut.

        Raises UserError, see `score`; an image that cannot be scored is no fault with `on_error: skip_group`.
        """
        columns = columns or [{} for _ in texts]
        for address in self.config.addresses:
            about = f"{self.about}: {address}"
            try_on_blank_images(partial(self._ask, [address]), about, self.config.skips, texts, columns)
        return []

    def score(
        self, images: np.ndarray, texts: list[str], columns: Columns = ()
    ) -> np.ndarray | Mapping[str, np.ndarray]:
        """See RewardModel.

        Raises:
            UnscoredError: the server says that these images cannot be scored.
            UserError: no server gave an answer as it should be, however often it was asked; names all of them and what
                was wrong with the last answer. Or one refused the request.
        """
        columns = columns or [{} for _ in texts]
        parts: list[Any] = []
        for start in range(0, len(images), self.config.batch_size):
            part = slice(start, start + self.config.batch_size)
            self.turn += 1
            first = self.turn % len(self.config.addresses)
            in_turn = self.config.addresses[first:] + self.config.addresses[:first]
            parts.append(self._ask(in_turn, images[part], texts[part], columns[part]))
        if not isinstance(parts[0], Mapping):
            return np.concatenate(parts)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _body(self, images: np.ndarray, texts: list[str], columns: Columns) -> bytes:
        names = list(dict.fromkeys(name for row in columns for name in row))
        values = {name: [row.get(name) for row in columns] for name in names}
        try:
            return json.dumps(
                {"images": [self._encoded(image) for image in images], "prompts": texts, "columns": values}
            ).encode()
        except TypeError as error:
            raise UserError(f"{self.about}: a column of the prompts file cannot be sent as JSON: {error}") from error

    def _encoded(self, image: np.ndarray) -> str:
        file = BytesIO()
        quality = {"quality": 95} if self.config.image_format == "jpeg" else {"compress_level": 1}
        Image.fromarray(image).save(file, self.config.image_format, **quality)
        return base64.b64encode(file.getvalue()).decode()

    def _ask(
        self, addresses: list[str], images: np.ndarray, texts: list[str], columns: Columns
    ) -> np.ndarray | dict[str, np.ndarray]:
        """The scores of one request, from the first of the addresses that gives them."""
        config, body = self.config, self._body(images, texts, columns)
        retry = urllib3.Retry(
            config.retries, backoff_factor=config.backoff_seconds / 2, backoff_max=LONGEST_WAIT, allowed_methods=None
        )
        for i in range(config.retries + 1):
            address = addresses[i % len(addresses)]
            try:
                return self._answer(address, body, len(images))
            except (HTTPError, ValueError) as error:
                if isinstance(error, UserError):
                    raise
                fault = " ".join(str(error).split())
            try:
                retry = retry.increment("POST", address, error=HTTPError(fault))
            except MaxRetryError:
                break
            wait = retry.get_backoff_time()
            log.warning("%s: %s: %s; asking again in %g s", self.about, address, fault, wait)
            retry.sleep()
        raise UserError(
            f"{self.about}: no scores from {', '.join(addresses)} after {config.retries} retries; at last {address}: "
            f"{fault}"
        )

    def _answer(self, address: str, body: bytes, number: int) -> np.ndarray | dict[str, np.ndarray]:
        """Raises ValueError or HTTPError if it should be asked again, UserError if that is of no use."""
        headers = self.headers | {"Content-Type": "application/json"}
        answer = self.http.request("POST", address, body=body, headers=headers)
        if answer.status != 200:
            fault = f"answered {answer.status}: {answer.data.decode(errors='replace')[:200]}"
            if 400 <= answer.status < 500 and answer.status not in TEMPORARY:
                raise UserError(f"{self.about}: {address}: {fault}")
            raise ValueError(fault)
        try:
            content: Any = json.loads(answer.data)
        except ValueError:
            raise ValueError(f"answered {answer.data[:60]!r}, expected JSON") from None
        if isinstance(content, dict) and "error" in content:
            raise UnscoredError(f"{self.about}: {address}: {content['error']}")
        if not isinstance(content, dict) or "scores" not in content:
            raise ValueError(f'answered {answer.data[:60]!r}, expected {{"scores": ...}}')
        scores = as_scores(content["scores"], number)
        names = sorted(scores) if isinstance(scores, Mapping) else []
        if self.names is not None and names != self.names:
            expected = ", ".join(self.names) or "one reward"
            raise ValueError(f"expected {expected}, found {', '.join(names) or 'one reward'}")
        self.names = names
        return scores
