"""The work of each phase of a stage: operators, memory traffic and arithmetic. Arithmetic alone.

Operations are counted as in PaLM's appendix B (arXiv 2204.02311): a token of a sequence of T tokens takes
2 N + 4 L H Q T in a forward pass, attention in full. A pass is one forward pass, a training pass is 3 of them (4 where
layers are recomputed).
"""

from math import ceil

from simplear_rl.config.learner import AlgorithmConfig, LearnerConfig
from simplear_rl.config.rewards import ImageTextRewardConfig
from simplear_rl.config.rollout import EngineConfig
from simplear_rl.plan.memory import CLIP, DRAWING, layer_activations
from simplear_rl.plan.speed import Speed, Work
from simplear_rl.policy.sizes import BYTES, PolicySizes

# Operators of a layer: of our decoding step with Triton kernels and in PyTorch's operators (rollout/decode_*.py), and
# of a layer of Transformers in a pass.
KERNELS, OPERATORS, LAYER = 10, 26, 40
DRAW = 12  # operators of a draw
# What a pass keeps is written once and read once in each of its forward passes or their like.
TOUCHES = 2
KEPT_PER_LOGIT = 12  # bytes: logits, log-softmax, a gradient in float32
UPDATED = 40  # bytes of traffic per weight of an optimizer step: gradients, AdamW's states, weights
# Cosmos, per pixel that is decoded. An allowance: 25 images of 1024 x 1024 pixels a second on an A100.
COSMOS_FLOPS = 7e6


def body(decoder: PolicySizes) -> int:
    """Weights of all layers, without embedding and head."""
    return decoder.parameters - decoder.vocabulary * decoder.hidden


def decoding_operators(decoder: PolicySizes, gpu: bool) -> int:
    """How many operators a decoding step and the draw behind it have."""
    return decoder.layers * (KERNELS if gpu else OPERATORS) + DRAW


def decoding(decoder: PolicySizes, engine: EngineConfig, speed: Speed, contexts: int, prompt: int) -> Work:
    """All codes of a batch of so many contexts: as many steps as an image has tokens. Prefill is left out."""
    e, weights = BYTES[engine.dtype], body(decoder) + decoder.codes * decoder.hidden
    length = prompt + decoder.tokens / 2  # on average
    cache = contexts * length * 2 * decoder.layers * decoder.kv_heads * decoder.head_size * e
    attention = 4 * decoder.layers * decoder.heads * decoder.head_size * length
    host = speed.assumptions.vllm_step + contexts * speed.assumptions.vllm_context if engine.type == "vllm" else 0
    step = Work(
        bytes=e * weights + cache + contexts * decoder.codes * DRAWING,
        flops=contexts * (2 * weights + attention),
        replayed=decoding_operators(decoder, speed.gpu),
        waiting=host,
    )
    return step * decoder.tokens


def passing(decoder: PolicySizes, dtype: str, sequences: int, prompt: int, ids: int, passes: float, times: int) -> Work:
    """So many sequences through the policy, `passes` forward passes of each, in `times` parts one after the other.

    `ids`: of the head: the codes in GRPO, the whole vocabulary in pretraining and SFT.
    """
    length = prompt + decoder.tokens
    weights = body(decoder) + ids * decoder.hidden
    attention = 4 * decoder.layers * decoder.heads * decoder.head_size * length
    kept = decoder.layers * layer_activations(decoder, dtype) + KEPT_PER_LOGIT * ids
    tokens = sequences * length * passes
    return Work(
        started=times * passes * decoder.layers * LAYER,
        bytes=TOUCHES * tokens * kept + times * passes * weights * BYTES[dtype],
        flops=tokens * (2 * weights + attention),
    )


def training_passes(learner: LearnerConfig) -> int:
    """Forward pass, backward pass (two of its like) and, with checkpointing, recomputation."""
    return 4 if learner.activation_checkpointing else 3


def optimizing(decoder: PolicySizes, learner: LearnerConfig) -> Work:
    """One optimizer step on a rank; ZeRO shares it."""
    return Work(bytes=UPDATED * decoder.parameters / (learner.actors.count if learner.zero_stage else 1))


def updating(
    decoder: PolicySizes,
    learner: LearnerConfig,
    algorithm: AlgorithmConfig,
    groups: int,
    samples: int,
    contexts: int,
    prompt: int,
) -> Work:
    """GRPO's update on a rank: its groups, `learner.micro_batch` images at a time, as often as the algorithm says."""
    times = ceil(groups * samples / (learner.micro_batch or samples)) * contexts
    passes = training_passes(learner) * algorithm.updates_per_batch + (algorithm.optimizer_steps > 1)
    through = passing(decoder, learner.dtype, groups * samples * contexts, prompt, decoder.codes, passes, times)
    return through + optimizing(decoder, learner) * algorithm.optimizer_steps


def all_reduced(decoder: PolicySizes, learner: LearnerConfig) -> float:
    """Bytes that a rank sends for each optimizer step: gradients around a ring, in float32."""
    ranks = learner.actors.count
    return 2 * (ranks - 1) / ranks * decoder.parameters * BYTES["float32"]


def featuring(model: ImageTextRewardConfig, images: int) -> Work:
    """Image features of a CLIP whose size is known."""
    clip = CLIP[model.model]
    e, tokens, times = BYTES[model.dtype], images * clip.tokens, ceil(images / model.batch_size)
    weights = 12 * clip.width**2 * clip.layers
    kept = 16 * clip.width * e * clip.layers
    attention = 4 * clip.layers * clip.width * clip.tokens
    return Work(
        started=times * clip.layers * LAYER / 2,
        bytes=TOUCHES * tokens * kept + times * weights * e,
        flops=tokens * (2 * weights + attention),
    )


def picturing(pixels: float) -> Work:
    """Decoding codes to so many pixels."""
    return Work(flops=COSMOS_FLOPS * pixels)
