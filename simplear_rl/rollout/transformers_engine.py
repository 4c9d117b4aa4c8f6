"""Sampling with Transformers alone: a batch of prompts of unequal lengths, one key-value cache."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache

from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rollout.sampling import draw_codes, uniform_stream


def sample_codes(
    model: Qwen2ForCausalLM, prompts: list[list[int]], layout: ImageLayout, seeds: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Draw one image per prompt at temperature 1; codes int64 [B, T].

    Row b consumes the uniform stream of `seeds[b]`, as in the vLLM engine: for equal seeds and weights both draw the
    same image (up to rounding at the edge of a code's interval).
    """
    device = model.get_input_embeddings().weight.device
    longest = max(map(len, prompts))
    ids_BP = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask_BL = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    uniforms_BT = torch.from_numpy(np.stack([uniform_stream(seed, layout.tokens) for seed in seeds]))
    cache = DynamicCache()
    codes = []
    next_ids, positions = ids_BP, (mask_BL.cumsum(-1) - 1).clamp(min=0)
    for t in range(layout.tokens):
        output = model(
            input_ids=next_ids,
            attention_mask=mask_BL,
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=1,
        )
        visual_BC = output.logits[:, -1, layout.visual_offset : layout.vocabulary_size].float()
        codes.append(draw_codes(torch.log_softmax(visual_BC, dim=-1), uniforms_BT[:, t]))
        next_ids, positions = codes[-1].unsqueeze(-1) + layout.visual_offset, positions[:, -1:] + 1
        mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(prompts), 1)], dim=1)
    return torch.stack(codes, dim=1)
