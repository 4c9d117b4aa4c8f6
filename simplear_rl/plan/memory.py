"""The memory that each role's actor takes. Arithmetic alone.

Weights, gradients and optimizer states follow ZeRO (arXiv 1910.02054, section 3), activations the way of counting of
arXiv 2205.05198 (section 4), done anew for Qwen2: what each operation of Transformers' layer keeps for its backward
pass. What cannot be derived is a constant here, with its reason. All sizes are bytes; a `Memory` is a list of parts
whose sum is the peak, cautiously: not all of them are at their largest at the same moment. On an H100 a learner of 0.5B
took 9.2 and 14.8 GiB where the plan, without `process`, said 10.7 and 18.2 (docs/timings.md).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simplear_rl.config.benchmarks import BenchmarkConfig
from simplear_rl.config.dpo import DpoConfig
from simplear_rl.config.learner import LearnerConfig
from simplear_rl.config.rewards import ImageTextRewardConfig, RewardModelConfig
from simplear_rl.config.rollout import EngineConfig
from simplear_rl.config.stages import GrpoConfig
from simplear_rl.policy.log_probs import LOGITS_PER_CHUNK
from simplear_rl.policy.sizes import BYTES, PolicySizes
from simplear_rl.rollout.capacity import GIB, engine_cache
from simplear_rl.tokenizers.cosmos import PIXELS_PER_PASS

Memory = dict[str, float]


@dataclass(frozen=True)
class Clip:
    """Sizes of a CLIP; all but the parameters are those of its image tower."""

    parameters: int
    tokens: int  # of one image
    width: int
    layers: int


# Share of a GPU's memory that a plan may fill: the allocator fragments, and drivers keep a part.
USABLE = 0.9
# CUDA context, kernels, cuBLAS and NCCL buffers of one process. An allowance, not derived.
PROCESS = 1.5 * GIB
# Elements of DeepSpeed's buckets for gradients, and of weights gathered at a time under ZeRO-3 (its defaults).
BUCKET, GATHERED = 5e8, 1e9
# Bytes per logit of a chunk, in float32: logits, log-softmax and, in the backward pass, a gradient; guided, of both
# contexts, whose gradients come after the log-softmax is gone.
UNGUIDED, GUIDED = 12, 16
# And those of an entropy with a gradient: probabilities, their gradient and that of the log-softmax.
ENTROPY = 12
# Without gradients at most three arrays at a time: of both contexts and guided; then the log-softmax for one of them.
WITHOUT_GRADIENT = 12
# Gradients of the head that exist at a time, beside the one that training keeps, when logits come in several chunks:
# the sum so far, a chunk's own and the new sum.
HEAD_GRADIENTS = 3
PREFILL = 16_384  # tokens of one prefill step of vLLM
# Bytes per code and context of an engine's step: the head's row, log-softmax in float32, the CDF in float64.
DRAWING = 40
# Cosmos: its two networks in bfloat16, and its feature maps per pixel of a pass. Allowances, not derived.
COSMOS_WEIGHTS, COSMOS_PER_PIXEL = 0.5 * GIB, 1024

# Reward networks of open_clip.
CLIP = {
    "ViT-B-32": Clip(151_277_313, 50, 768, 12),
    "ViT-L-14": Clip(427_616_513, 257, 1024, 24),
    "ViT-H-14": Clip(986_109_441, 257, 1280, 32),
}
# Parameters of the models that judge a benchmark's images by default.
SCORERS = {
    "facebook/mask2former-swin-small-coco-instance": 68_741_083,
    "ViT-L-14-quickgelu": 427_616_513,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
}


def layer_activations(decoder: PolicySizes, dtype: str) -> float:
    """What one layer keeps per token for its backward pass.

    Two RMSNorms keep their input in float32, the normalised and the weighted one; attention (flash: no score is kept)
    queries, keys, values, output and a float32 per head; the MLP gate, its SiLU, up and their product.
    """
    e, h = BYTES[dtype], decoder.hidden
    norms = 2 * ((4 + 2 * e) * h + 4)
    attention = 2 * e * (decoder.heads + decoder.kv_heads) * decoder.head_size + 4 * decoder.heads
    return norms + attention + 4 * e * decoder.ffn


def activations(decoder: PolicySizes, dtype: str, checkpointing: bool) -> float:
    """Peak per token in a training step, the gradients of one layer included.

    With checkpointing each layer keeps its input alone, and one at a time is computed again.
    """
    e, layer = BYTES[dtype], layer_activations(decoder, dtype)
    kept = decoder.layers * e * decoder.hidden + layer if checkpointing else decoder.layers * layer
    return kept + layer + (4 + e) * decoder.hidden


def states_memory(parameters: int, learner: LearnerConfig) -> Memory:
    """Weights, gradients and AdamW of one rank under its ZeRO stage, as DeepSpeed keeps them.

    Gradients are float32 throughout. Per weight the optimizer has momentum and variance and, unless it works on float32
    weights themselves, a float32 copy; its step makes the square root of the variance and, from ZeRO 2 on and for
    shards of float32 weights, another copy of the gradient.
    """
    e, ranks, stage = BYTES[learner.dtype], learner.actors.count, learner.zero_stage
    share = [1 if stage < s else 1 / ranks for s in range(4)]
    own_copy = learner.dtype == "float32" and stage == 0
    in_place = own_copy or (learner.dtype == "bfloat16" and stage == 1)
    buffers = BUCKET * 4 * (2 if stage == 3 else 1) if stage else min(BUCKET, parameters) * 4 * (ranks > 1)
    gathered = min(GATHERED, parameters) * e if stage == 3 else 0
    return {
        "weights": parameters * e * share[3],
        "gradients": parameters * 4 * share[2],
        "optimizer": parameters * (8 if own_copy else 12) * share[1],
        "optimizer step": parameters * (4 if in_place else 8) * share[1],
        "buckets": buffers + gathered,
    }


def supervised_memory(
    decoder: PolicySizes, learner: LearnerConfig, images: int, prompt: int, drawing: EngineConfig | None = None
) -> Memory:
    """A learner's rank in pretraining and SFT: `images` a pass, prompts of `prompt` tokens.

    `drawing`: how it draws the images of evaluations, if it does.
    """
    tokens = images * (prompt + decoder.tokens)
    passing = {
        "activations": tokens * activations(decoder, learner.dtype, learner.activation_checkpointing),
        "logits": logits_peak(decoder, learner.dtype, tokens, decoder.vocabulary, UNGUIDED),
    }
    drawn = engine_memory(decoder, drawing) if drawing else {}
    own = {"drawing": sum(size for part, size in drawn.items() if part != "weights")}
    return _peak(states_memory(decoder.parameters, learner), passing, own)


def grpo_memory(
    decoder: PolicySizes, learner: LearnerConfig, images: int, guided: bool, prompt: int, entropy_bonus: bool = False
) -> Memory:
    """A learner's rank in GRPO: so many images of a group in one pass; a guided one has two contexts."""
    tokens = images * (1 + guided) * (prompt + decoder.tokens)
    per_logit = (GUIDED if guided else UNGUIDED) + ENTROPY * entropy_bonus
    passing = {
        "activations": tokens * activations(decoder, learner.dtype, learner.activation_checkpointing),
        "log-probs": logits_peak(decoder, learner.dtype, images * decoder.tokens, decoder.codes, per_logit),
    }
    return _peak(states_memory(decoder.parameters, learner), passing)


def _peak(states: Memory, *passing: Memory) -> Memory:
    """A pass, the optimizer step and drawing come one after the other: of these, what takes most."""
    step = {"optimizer step": states.pop("optimizer step")}
    return states | max(*passing, step, key=lambda parts: sum(parts.values()))


def logits_peak(decoder: PolicySizes, dtype: str, rows: int, ids: int, per_logit: int) -> float:
    """Log-probs of `ids` ids at so many positions and their backward pass, see policy/log_probs.py."""
    chunk = min(rows * ids, LOGITS_PER_CHUNK)
    heads = HEAD_GRADIENTS if chunk < rows * ids else 1
    return chunk * per_logit + heads * ids * decoder.hidden * BYTES[dtype]


def reference_memory(decoder: PolicySizes, dtype: str, images: int, guided: bool, prompt: int) -> Memory:
    """A frozen reference: of one context at a time one layer's activations, then one chunk of logits at a time."""
    passing = images * (prompt + decoder.tokens) * layer_activations(decoder, dtype)
    kept = guided * images * decoder.tokens * decoder.hidden * BYTES[dtype]  # the first context's hidden states
    chunk = min(images * decoder.tokens * decoder.codes, LOGITS_PER_CHUNK)
    return {
        "weights": decoder.parameters * BYTES[dtype],
        "activations": passing + kept,
        "log-probs": chunk * WITHOUT_GRADIENT,
    }


def engine_memory(decoder: PolicySizes, engine: EngineConfig) -> Memory:
    """A rollout engine."""
    e = BYTES[engine.dtype]
    drawing = engine.max_concurrent * (4 * decoder.vocabulary + DRAWING * decoder.codes)
    return {
        "weights": decoder.parameters * e,
        "KV cache": engine_cache(decoder, engine),
        "activations": PREFILL * e * (4 * decoder.hidden + 3 * decoder.ffn),
        "logits": drawing,
    }


def known_rewards(models: Sequence[RewardModelConfig]) -> list[ImageTextRewardConfig]:
    """The rewards whose networks are in the table."""
    return [model for model in models if isinstance(model, ImageTextRewardConfig) and model.model in CLIP]


def reward_memory(models: Sequence[RewardModelConfig]) -> tuple[Memory, list[str]]:
    """A reward actor: visual tokenizer and reward networks, and the names of those whose size is not known."""
    known = known_rewards(models)
    clips = [(model, CLIP[model.model]) for model in known]
    # One layer's MLP and attention.
    passes = [BYTES[model.dtype] * model.batch_size * 12 * clip.tokens * clip.width for model, clip in clips]
    memory = {model.name: float(BYTES[model.dtype] * clip.parameters) for model, clip in clips} | {
        "features": float(max(passes, default=0)),
    }
    return memory | tokenizer_memory(), [model.name for model in models if model not in known]


def grpo_roles(config: GrpoConfig, decoder: PolicySizes) -> dict[str, Memory]:
    """An actor of each role of GRPO, by configuration key, evaluations aside."""
    engine, guided = config.rollout.engine, config.rollout.guidance_scale != 1
    of_pass = config.images_per_pass, guided, engine.max_prompt_tokens
    return {
        "learner.actors": grpo_memory(decoder, config.learner, *of_pass, config.algorithm.entropy_bonus > 0),
        "rollout.engine.actors": engine_memory(decoder, engine),
        "reward.actors": reward_memory(config.reward.models)[0],
        "reference": reference_memory(decoder, config.learner.dtype, *of_pass) if config.algorithm.kl.beta else {},
    }


def dpo_roles(config: DpoConfig, decoder: PolicySizes) -> dict[str, Memory]:
    """An actor of each role of DPO, by configuration key, evaluations aside."""
    rollout, reward = config.rollout, config.reward
    prompt = rollout.engine.max_prompt_tokens if rollout else config.data.max_prompt_tokens if config.data else 0
    of_pass = config.images_per_pass, config.guided, prompt
    roles = {
        "learner.actors": grpo_memory(decoder, config.learner, *of_pass),
        "reference": reference_memory(decoder, config.learner.dtype, *of_pass),
    }
    if rollout and reward:
        roles["rollout.engine.actors"] = engine_memory(decoder, rollout.engine)
        roles["reward.actors"] = reward_memory(reward.models)[0]
    return roles


def scorer_memory(config: BenchmarkConfig) -> tuple[Memory, list[str]]:
    """A scorer: visual tokenizer and the weights of what judges, and the names of those whose size is not known."""
    detector, judge = config.detector, config.judge
    models: Sequence[tuple[str, str]] = {
        "shapes": [],
        "geneval": [(str(detector.model), detector.dtype), (detector.clip, detector.dtype)],
        "geneval2": [(config.judge_name, judge.dtype)],
        "dpg": [(config.judge_name, judge.dtype)],
    }[config.benchmark]
    if config.diversity:  # which loads a CLIP of its own
        models = [*models, (config.diversity.model, config.diversity.dtype)]
    memory: Memory = defaultdict(float)
    for name, dtype in models:
        if name in SCORERS:
            memory[Path(name).name] += BYTES[dtype] * SCORERS[name]
    return memory | tokenizer_memory(), [name for name, _ in models if name not in SCORERS]


def tokenizer_memory() -> Memory:
    """The visual tokenizer, decoding."""
    return {"visual tokenizer": COSMOS_WEIGHTS, "pixels": float(COSMOS_PER_PIXEL * PIXELS_PER_PASS)}
