"""What this process's device does at most, measured: memory traffic, products of large matrices, starting operators."""

import time
from collections.abc import Callable

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from simplear_rl.device import default_device
from simplear_rl.plan.work import LAYER, decoding_operators
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rollout.decode_step import DecodeStep
from simplear_rl.rollout.decoding import Decoder
from simplear_rl.timings.policies import geometry, tiny

COPIED = {"cpu": 2**26, "cuda": 2**30}  # bytes
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices


def measure_device() -> dict[str, float]:
    """What Measured (plan/speed.py) says of a device.

    Operators are those of a policy so small that nothing else takes time: of its decoding steps (`replayed`; on a GPU
    they are one graph), and of its forward and backward passes in Transformers (`started`).
    """
    device = default_device()

    def product(dtype: torch.dtype) -> float:
        matrix = torch.rand(SIDE[device], SIDE[device], device=device, dtype=dtype)
        return 2 * SIDE[device] ** 3 / _fastest(lambda: matrix @ matrix)

    one, other = (torch.zeros(COPIED[device] // 4, device=device) for _ in range(2))
    bandwidth = 2 * COPIED[device] / _fastest(lambda: other.copy_(one))
    sizes = tiny(tokens=64)
    layout = ImageLayout(sizes.vocabulary - sizes.codes, sizes.codes, 8, 8, "")
    with torch.device(device):
        model = Qwen2ForCausalLM(Qwen2Config(**geometry(sizes), vocab_size=sizes.vocabulary, tie_word_embeddings=True))
        ids = torch.zeros(1, 8, dtype=torch.long)

    def passes() -> None:
        model.model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()

    started = _fastest(passes) / (3 * sizes.layers * LAYER)
    decoder = Decoder(DecodeStep(model, layout, columns=8 + sizes.tokens))
    drawn = _fastest(lambda: decoder([[0, 1]], None, [(0, 0, 0, 0)], Sampling()))
    return {
        "bandwidth": bandwidth,
        "float32": product(torch.float32),
        "bfloat16": product(torch.bfloat16),
        "started": started,
        "replayed": drawn / sizes.tokens / decoding_operators(sizes, device == "cuda"),
    }


def _fastest(run: Callable[[], object], repeats: int = 7) -> float:
    """Seconds of the fastest of several runs: others on the machine only make one slower."""
    run()
    seconds = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
