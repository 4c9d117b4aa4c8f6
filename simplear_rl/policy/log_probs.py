"""Log-probabilities of image codes under a policy: the one definition that learner and reference share."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from simplear_rl.policy.guidance import guided_logits
from simplear_rl.policy.rollouts import Rollout
from simplear_rl.policy.sampling import entropy, sampling_log_probs
from simplear_rl.policy.visual_head import visual_logits
from simplear_rl.policy.vocabulary import ImageLayout

if TYPE_CHECKING:  # takes seconds to import, and the drivers do without
    from transformers import Qwen2ForCausalLM

# 256 MiB in float32. All logits of 4 images of 4,096 tokens at once would take 4.2 GB, and their gradients as much.
LOGITS_PER_CHUNK = 2**26

Values = TypeVar("Values", torch.Tensor, tuple[torch.Tensor, ...])


def hidden_states(
    model: "Qwen2ForCausalLM", groups: Sequence[tuple[list[int], torch.Tensor]], layout: ImageLayout
) -> torch.Tensor:
    """Last hidden states [B, T, hidden_size] at the positions that predict the codes, for all images of the groups.

    Prompts of unequal lengths are padded behind the image, where attention is causal: no mask is needed.

    Args:
        model: the policy.
        groups: of each its prompt's ids, ending in `<|soi|>`, and codes [G, T], 0 ... codebook_size - 1.
        layout: where the visual ids are.
    """
    rows = [
        torch.cat(
            [
                torch.tensor(ids, device=codes_GT.device).expand(len(codes_GT), -1),
                codes_GT[:, :-1] + layout.visual_offset,
            ],
            1,
        )
        for ids, codes_GT in groups
    ]
    longest = max(part.shape[1] for part in rows)
    ids_BL = torch.cat([functional.pad(part, (0, longest - part.shape[1])) for part in rows])
    hidden = model.model(input_ids=ids_BL, use_cache=False).last_hidden_state.split([len(part) for part in rows])
    of_groups = zip(hidden, groups, strict=True)
    return torch.cat([h[:, len(ids) - 1 : len(ids) - 1 + codes_GT.shape[1]] for h, (ids, codes_GT) in of_groups])


def in_chunks(function: Callable[..., Values], logits_per_row: int, *rows: torch.Tensor) -> list[Values]:
    """`function` of successive parts of `rows`, so small that no more than LOGITS_PER_CHUNK logits exist at a time.

    Where there are several parts, each is computed a second time in the backward pass instead of being kept.
    """
    size = max(1, LOGITS_PER_CHUNK // logits_per_row)
    if len(rows[0]) <= size:
        return [function(*rows)]
    parts = zip(*(tensor.split(size) for tensor in rows), strict=True)
    return [checkpoint(function, *part, use_reentrant=False) for part in parts]


def rollout_log_probs(
    model: "Qwen2ForCausalLM", rollouts: Sequence[Rollout], layout: ImageLayout, unconditional_gradient: bool = True
) -> torch.Tensor:
    """float32 [B, T] natural log-probs of the rollouts' codes under `model`, of the distribution they were drawn from.

    All go through the model together. Normalised over the visual codebook, at the rollouts' temperature and guidance
    scale. Guided, the gradient flows through both contexts, or through the conditional one alone.
    """
    return _of_distributions(model, rollouts, layout, unconditional_gradient)[0]


def rollout_log_probs_and_entropy(
    model: "Qwen2ForCausalLM",
    rollouts: Sequence[Rollout],
    layout: ImageLayout,
    unconditional_gradient: bool = True,
    entropy_gradient: bool = False,
) -> tuple[torch.Tensor, ...]:
    """`rollout_log_probs`, and the entropy in nats of the distribution of each code: float32 [B, T] both.

    Without `entropy_gradient` the entropy is a constant.
    """
    function = entropy if entropy_gradient else torch.no_grad()(entropy)
    return _of_distributions(model, rollouts, layout, unconditional_gradient, function)


def _of_distributions(
    model: "Qwen2ForCausalLM",
    rollouts: Sequence[Rollout],
    layout: ImageLayout,
    unconditional_gradient: bool,
    *functions: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """Log-probs of the codes, and `functions` of the log-probs [N, codebook_size] of all codes: [B, T] each."""
    codes = [torch.from_numpy(rollout.codes.astype(np.int64)).to(model.device) for rollout in rollouts]
    codes_BT, sampling = torch.cat(codes), rollouts[0].sampling
    prompts = [rollout.prompt_ids for rollout in rollouts]
    contexts = [hidden_states(model, list(zip(prompts, codes, strict=True)), layout)]
    if (unconditional := rollouts[0].unconditional_ids) is not None:
        with torch.set_grad_enabled(torch.is_grad_enabled() and unconditional_gradient):
            contexts.append(hidden_states(model, [(unconditional, codes_BT)], layout))
    # Only the visual rows of the tied head: text ids are never scored as image tokens.
    head_CH = model.lm_head.weight[layout.visual_offset : layout.vocabulary_size]

    def of_rows(codes_N: torch.Tensor, *contexts_NH: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits_NC = visual_logits(contexts_NH[0], head_CH)
        if len(contexts_NH) > 1:
            with torch.set_grad_enabled(torch.is_grad_enabled() and unconditional_gradient):
                unconditional_NC = visual_logits(contexts_NH[1], head_CH)
            logits_NC = guided_logits(logits_NC, unconditional_NC, sampling.guidance_scale)
        log_probs_NC = sampling_log_probs(logits_NC, sampling)
        del logits_NC  # `functions` need its memory
        chosen_N = log_probs_NC.gather(-1, codes_N.unsqueeze(-1)).squeeze(-1)
        # Last: where they have no gradient, a part's second computation ends before them.
        return chosen_N, *(function(log_probs_NC) for function in functions)

    rows = [codes_BT.flatten(), *(context.flatten(0, 1) for context in contexts)]
    parts = in_chunks(of_rows, layout.codebook_size, *rows)
    return tuple(torch.cat(values).view_as(codes_BT) for values in zip(*parts, strict=True))
