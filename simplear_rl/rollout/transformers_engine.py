"""Sampling with Transformers alone: a batch of prompts of unequal lengths, guided or not, one key-value cache."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import DynamicCache, Qwen2ForCausalLM, StaticCache

from simplear_rl.policy.guidance import guided_logits
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rollout.sampling import Sampling, draw_codes, sampling_log_probs, uniform_stream


def sample_codes(
    model: Qwen2ForCausalLM,
    prompts: list[list[int]],
    layout: ImageLayout,
    seeds: Sequence[Sequence[int]],
    sampling: Sampling | None = None,
    unconditional: list[list[int]] | None = None,
    static_cache: bool = False,
    decode: Callable | None = None,
) -> torch.Tensor:
    """Draw one image per prompt; codes int64 [B, T].

    Row b consumes the uniform stream of `seeds[b]`, as in the vLLM engine: for equal seeds and weights both draw the
    same image (up to rounding at the edge of a code's interval).

    Args:
        model: the policy.
        prompts: prompt ids, of any lengths.
        layout: where the visual ids are.
        seeds: one per prompt.
        sampling: temperature 1 without guidance, if not given.
        unconditional: the other context of every prompt, with guidance; decoded in the same batch.
        static_cache: allocate the cache at its full length: all steps have the same shapes.
        decode: what computes the steps behind the prompt in place of `model.model`, for example its compiled form.
    """
    sampling = sampling or Sampling()
    device = model.get_input_embeddings().weight.device
    contexts = [*prompts, *(unconditional or [])]
    longest, images = max(map(len, contexts)), len(prompts)
    # Padding on the left: all contexts write their next token in the same column.
    ids_KP = torch.tensor([[0] * (longest - len(ids)) + ids for ids in contexts], device=device)
    mask_KL = torch.zeros(len(contexts), longest + layout.tokens, dtype=torch.long, device=device)
    for row, ids in enumerate(contexts):
        mask_KL[row, longest - len(ids) :] = 1
    positions_KL = (mask_KL.cumsum(-1) - 1).clamp(min=0)
    uniforms_BT = torch.from_numpy(np.stack([uniform_stream(seed, layout.tokens) for seed in seeds])).to(device)
    cache = StaticCache(model.config, max_cache_len=mask_KL.shape[1]) if static_cache else DynamicCache()
    head = model.lm_head.weight[layout.visual_offset : layout.vocabulary_size]
    codes: list[torch.Tensor] = []
    next_ids, columns = ids_KP, torch.arange(longest, device=device)
    for t in range(layout.tokens):
        step = model.model if decode is None or t == 0 else decode
        hidden = step(
            input_ids=next_ids,
            attention_mask=mask_KL if static_cache else mask_KL[:, : longest + t],
            position_ids=positions_KL[:, columns],
            past_key_values=cache,
            cache_position=columns,
            use_cache=True,
        ).last_hidden_state[:, -1]
        logits_BC = (hidden @ head.T).float()
        if unconditional:
            logits_BC = guided_logits(logits_BC[:images], logits_BC[images:], sampling.guidance_scale)
        log_probs_BC = sampling_log_probs(logits_BC, sampling)
        codes.append(draw_codes(log_probs_BC, uniforms_BT[:, t]) if sampling.temperature else log_probs_BC.argmax(-1))
        next_ids = (codes[-1] + layout.visual_offset).repeat(len(contexts) // images).unsqueeze(-1)
        columns = columns[-1:] + 1
    return torch.stack(codes, dim=1)
