"""Log-probabilities of image codes under a policy: the one definition that learner and reference share."""

import numpy as np
import torch
from transformers import Qwen2ForCausalLM

from simplear_rl.policy.guidance import guided_logits
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rollout.sampling import sampling_log_probs
from simplear_rl.rollout.types import Rollout


def visual_logits(
    model: Qwen2ForCausalLM, prompt_ids: list[int], codes_GT: torch.Tensor, layout: ImageLayout
) -> torch.Tensor:
    """Logits over the visual codebook at every image position, for G images of one prompt.

    One prompt per call: all rows have equal length, so there is no padding and no mask.

    Args:
        model: the policy.
        prompt_ids: ids of the shared prompt, ending in `<|soi|>`.
        codes_GT: [G, T] codes, 0 ... codebook_size - 1.
        layout: where the visual ids are.

    Returns:
        float32 [G, T, codebook_size]; position t predicts code t.
    """
    prompt_GP = torch.tensor(prompt_ids, device=codes_GT.device).expand(len(codes_GT), -1)
    ids = torch.cat([prompt_GP, codes_GT[:, :-1] + layout.visual_offset], dim=1)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, len(prompt_ids) - 1 :]
    # Only the visual rows of the tied head: text ids are never scored as image tokens.
    rows = model.lm_head.weight[layout.visual_offset : layout.vocabulary_size]
    return (hidden @ rows.T).float()


def rollout_log_probs(
    model: Qwen2ForCausalLM, rollout: Rollout, layout: ImageLayout, unconditional_gradient: bool = True
) -> torch.Tensor:
    """float32 [G, T] natural log-probs of a rollout's codes under `model`, of the distribution they were drawn from.

    Normalised over the visual codebook, at the rollout's temperature and guidance scale. Guided, the gradient flows
    through both contexts, or through the conditional one alone.
    """
    codes_GT = torch.from_numpy(rollout.codes.astype(np.int64)).to(model.device)
    logits_GTC = visual_logits(model, rollout.prompt_ids, codes_GT, layout)
    if rollout.unconditional_ids is not None:
        with torch.set_grad_enabled(torch.is_grad_enabled() and unconditional_gradient):
            unconditional_GTC = visual_logits(model, rollout.unconditional_ids, codes_GT, layout)
        logits_GTC = guided_logits(logits_GTC, unconditional_GTC, rollout.sampling.guidance_scale)
    log_probs_GTC = sampling_log_probs(logits_GTC, rollout.sampling)
    return log_probs_GTC.gather(-1, codes_GT.unsqueeze(-1)).squeeze(-1)
