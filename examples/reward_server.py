"""Serves a reward of `type: python` to `type: http`, at /score: see simplear_rl/rewards/http.py for the protocol.

With the environment variable REWARD_TOKEN a request must bring that token.
"""

import argparse
import base64
import json
import os
from io import BytesIO
from threading import Lock
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Header, HTTPException
from PIL import Image
from pydantic import BaseModel

from simplear_rl.config.rewards import PythonRewardConfig
from simplear_rl.errors import UserError
from simplear_rl.rewards.python import PythonReward
from simplear_rl.rewards.reward import UnscoredError

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("function", help="package.module:name or path/to/file.py:name")
parser.add_argument("--arguments", type=json.loads, default={}, help="as JSON")
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, default=8000)
options = parser.parse_args()
reward = PythonReward(PythonRewardConfig(function=options.function, arguments=options.arguments))
app, one_at_a_time = FastAPI(), Lock()


class Batch(BaseModel):
    """What is asked."""

    images: list[str]
    prompts: list[str]
    columns: dict[str, list[Any]] = {}


@app.post("/score")
def score(batch: Batch, authorization: str = Header("")) -> dict:
    """The scores of a batch, or why it has none."""
    if (token := os.environ.get("REWARD_TOKEN")) and authorization != f"Bearer {token}":
        raise HTTPException(401, "the bearer token is missing or wrong")
    images = [np.asarray(Image.open(BytesIO(base64.b64decode(i))).convert("RGB")) for i in batch.images]
    rows = [{name: values[i] for name, values in batch.columns.items()} for i in range(len(images))]
    try:
        with one_at_a_time:
            scores = reward.score(np.stack(images), batch.prompts, rows)
    except UnscoredError as error:
        return {"error": str(error)}
    except UserError as error:
        raise HTTPException(422, str(error)) from error
    return {"scores": {k: listed(v) for k, v in scores.items()} if isinstance(scores, dict) else listed(scores)}


def listed(scores: np.ndarray) -> list[float | None]:
    """Numbers as JSON has them."""
    return [float(score) if np.isfinite(score) else None for score in scores]


uvicorn.run(app, host=options.host, port=options.port)
