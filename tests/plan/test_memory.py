"""The plan's arithmetic against real layers and losses; tests/learning/test_memory.py has the learner."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, Qwen2ForCausalLM

from simplear_rl.config.base import CONFIGS, ActorsConfig, PoolConfig
from simplear_rl.config.learner import LearnerConfig, OptimizerConfig
from simplear_rl.config.load import load_config
from simplear_rl.config.rollout import EngineConfig
from simplear_rl.config.serving import ServeConfig
from simplear_rl.errors import UserError
from simplear_rl.learning.cross_entropy import summed_cross_entropy
from simplear_rl.plan import memory
from simplear_rl.policy import log_probs
from simplear_rl.policy.rollouts import Prompt, Rollout
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.sizes import PolicySizes, published
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rollout.capacity import context_cache, engine_cache, gib_for, images_at_once

CONFIG = Qwen2Config(
    hidden_size=128, intermediate_size=384, num_attention_heads=4, num_key_value_heads=2, vocab_size=500
)


def decoder_and_model(layers, vocabulary=500, dtype=torch.float32):
    config = Qwen2Config(**(CONFIG.to_dict() | {"vocab_size": vocabulary, "tie_word_embeddings": True}))
    config.num_hidden_layers, config.layer_types = layers, ["full_attention"] * layers
    return PolicySizes.of(config, codes=100, tokens=64), Qwen2ForCausalLM(config).to(dtype).train()


def learner(**values) -> LearnerConfig:
    stage = {"zero_stage": 1} if values.get("dtype") == "bfloat16" else {}
    return LearnerConfig(optimizer=OptimizerConfig(learning_rate=1e-3), **(stage | values))


class LiveMemory(TorchDispatchMode):
    """Bytes of all tensors made inside, at their peak. What a kernel takes and returns within a call is not seen."""

    def __init__(self):
        super().__init__()
        self.sizes, self.live, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, storage._cdata)
        return result

    def _freed(self, key):
        self.live -= self.sizes.pop(key)


def test_parameters_are_those_of_the_published_models():
    """Qwen2.5-0.5B and 1.5B have 494,032,768 and 1,543,714,304 parameters with an embedding of 151,936 rows."""
    for name, qwen, hidden in ("simplear-0.5b", 494_032_768, 896), ("simplear-1.5b", 1_543_714_304, 1536):
        assert published(name, 512).parameters == qwen + (215_672 - 151_936) * hidden
    assert published("simplear-1.5b", 1024).tokens == 4096


def test_parameters_are_those_of_a_model():
    decoder, model = decoder_and_model(layers=2)
    assert decoder.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_keeps_exactly_what_the_plan_says(dtype):
    kept = []
    for layers in 1, 3:
        decoder, model = decoder_and_model(layers, dtype=getattr(torch, dtype))
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        saved = {}

        def keep(tensor, saved=saved, weights=weights):
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                saved[storage._cdata] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = model.model(torch.zeros(2, 64, dtype=torch.int64), use_cache=False).last_hidden_state
        kept.append(sum(storage.nbytes() for storage in saved.values()))
        del hidden
    assert (kept[1] - kept[0]) / 2 / (2 * 64) == memory.layer_activations(decoder, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("layers", "vocabulary", "chunk", "above"),
    [(12, 100, 2**26, 1.2), (2, 8000, 2**26, 1.2), (2, 8000, 2**20, 2.0)],
    ids=["layers", "logits", "chunks"],
)
def test_peak_of_a_supervised_pass(dtype, checkpointing, layers, vocabulary, chunk, above, monkeypatch):
    """The plan is never below what a pass takes, and at most a fifth above it (seen: 1 to 16 %).

    With logits in chunks up to twice it: they are gone when the layers' gradients are at their largest.
    """
    for module in memory, log_probs:
        monkeypatch.setattr(module, "LOGITS_PER_CHUNK", chunk)
    decoder, model = decoder_and_model(layers, vocabulary, getattr(torch, dtype))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    images, prompt = 16, 16
    ids = torch.zeros(images, prompt + decoder.tokens + 1, dtype=torch.int64)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # theirs is another part of the plan
    with LiveMemory() as live:
        summed_cross_entropy(model, ids, ids).backward()
    config = learner(dtype=dtype, activation_checkpointing=checkpointing)
    parts = memory.supervised_memory(decoder, config, images, prompt)
    planned = parts["activations"] + parts["logits"]
    assert live.peak <= planned <= above * live.peak


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("entropy_bonus", [False, True])
def test_peak_of_the_log_probs_of_a_group(dtype, guided, entropy_bonus, monkeypatch):
    """The same for GRPO, where the head's visual rows are the most part of a small model."""
    for module in memory, log_probs:
        monkeypatch.setattr(module, "LOGITS_PER_CHUNK", 2**20)
    decoder, model = decoder_and_model(1, 8000, getattr(torch, dtype))
    decoder, layout = replace(decoder, codes=7900), ImageLayout(100, 7900, 8, 8, "")
    null = [0] * 8 if guided else None
    sampling = Sampling(guidance_scale=2.0 if guided else 1.0)
    group = Rollout(Prompt(0, ""), [0] * 8, null, np.zeros((16, 64), np.uint16), np.zeros((16, 64)), sampling, 0, 0, 0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with LiveMemory() as live:
        values = log_probs.rollout_log_probs_and_entropy(model, [group], layout, entropy_gradient=entropy_bonus)
        sum(value.sum() for value in values).backward()
    del values
    parts = memory.grpo_memory(decoder, learner(dtype=dtype), 16, guided, 8, entropy_bonus)
    assert live.peak <= parts["activations"] + parts["log-probs"] <= 2 * live.peak
    with torch.no_grad(), LiveMemory() as live:
        log_probs.rollout_log_probs(model, [group], layout)
    parts = memory.reference_memory(decoder, dtype, 16, guided, 8)
    assert live.peak <= parts["activations"] + parts["log-probs"] <= 2 * live.peak


def test_zero_shares_states_then_gradients_then_weights():
    parts = ("weights", "gradients", "optimizer")
    shares = {1: (2, 4, 12 / 4), 2: (2, 4 / 4, 12 / 4), 3: (2 / 4, 4 / 4, 12 / 4)}
    for stage, expected in shares.items():
        states = memory.states_memory(1000, learner(zero_stage=stage, dtype="bfloat16", actors=ActorsConfig(count=4)))
        assert [states[part] / 1000 for part in parts] == list(expected)


def test_images_that_an_engine_draws_at_once():
    decoder = published("simplear-0.5b", 1024)
    engine = EngineConfig(dtype="bfloat16", max_prompt_tokens=128, kv_cache_gib=1, max_concurrent=64)
    # Key and value of 24 layers x 2 heads x 64 in 2 bytes: 12,288 bytes a token, 4,224 tokens.
    assert context_cache(decoder, engine) == 12_288 * 4224
    assert images_at_once(decoder, engine, guided=False) == 20
    assert images_at_once(decoder, engine, guided=True) == 10
    other = engine.model_copy(update={"type": "transformers"})
    assert images_at_once(decoder, other, guided=True) == other.max_concurrent // 2
    assert engine_cache(decoder, other) == other.max_concurrent * 12_288 * 4224
    for key, value in ("max_concurrent", 1), ("kv_cache_gib", 0.06):
        with pytest.raises(UserError, match=r"a guided image takes 2 .* have room for 1: raise them"):
            images_at_once(decoder, engine.model_copy(update={key: value}), guided=False)


def test_the_server_of_the_published_size_has_a_context_for_every_slot():
    engine = load_config(ServeConfig, CONFIGS / "simplear_0.5b" / "serve.yaml").engine
    decoder = published("simplear-0.5b", 1024)
    assert images_at_once(decoder, engine, guided=False) == engine.max_concurrent == 64
    assert images_at_once(decoder, engine, guided=True) == 32


@pytest.mark.parametrize("gpus", [0.0, 0.5])
def test_the_cache_for_some_contexts_holds_them_and_no_more(gpus):
    decoder, engine = published("simplear-1.5b", 512), EngineConfig(max_concurrent=100, actors=PoolConfig(gpus=gpus))
    for contexts in 2, 17, 32:
        sized = engine.model_copy(update={"kv_cache_gib": gib_for(contexts, decoder, engine)})
        assert images_at_once(decoder, sized, guided=False) == contexts


def test_on_a_cpu_vllm_takes_blocks_of_128_tokens():
    decoder = published("simplear-0.5b", 1024)
    engine = EngineConfig(dtype="float32", max_prompt_tokens=10, max_concurrent=64)
    assert context_cache(decoder, engine) == 2 * 12_288 * 4224
    on_gpu = engine.model_copy(update={"actors": PoolConfig(gpus=1)})
    assert context_cache(decoder, on_gpu) == 2 * 12_288 * 4112


def test_rewards_of_unknown_size_are_named(reward_model):
    known, unknown = memory.reward_memory([reward_model("ViT-H-14", "x"), reward_model("local-dir:/clip", None)])
    assert known["clip_ViT-H-14"] == 4 * 986_109_441
    assert unknown == ["clip_clip"]


@pytest.fixture
def reward_model():
    from simplear_rl.config.rewards import ClipRewardConfig

    return lambda model, weights: ClipRewardConfig(model=model, weights=weights)
