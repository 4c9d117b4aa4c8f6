"""Log-probabilities of image codes under a policy: the one definition that learner and reference share."""

import torch
from transformers import Qwen2ForCausalLM

from simplear_rl.policy.vocabulary import ImageLayout


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


def visual_log_probs(
    model: Qwen2ForCausalLM,
    prompt_ids: list[int],
    codes_GT: torch.Tensor,
    layout: ImageLayout,
    temperature: float,
) -> torch.Tensor:
    """float32 [G, T] natural log-probs of `codes_GT`, normalised over the visual codebook at `temperature`."""
    logits_GTC = visual_logits(model, prompt_ids, codes_GT, layout) / temperature
    return torch.log_softmax(logits_GTC, dim=-1).gather(-1, codes_GT.unsqueeze(-1)).squeeze(-1)
