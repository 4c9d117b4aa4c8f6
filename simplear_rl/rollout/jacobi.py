"""Speculative Jacobi Decoding (arXiv 2410.01699) with a key-value cache: several codes per forward pass, lossless."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Qwen2ForCausalLM
from transformers.cache_utils import Cache

from simplear_rl.policy.guidance import guided_logits
from simplear_rl.policy.sampling import Sampling, draw_codes, sampling_log_probs, uniform_stream
from simplear_rl.policy.visual_head import visual_logits
from simplear_rl.policy.vocabulary import ImageLayout


@dataclass(frozen=True)
class JacobiStatistics:
    """Means over the images of a batch."""

    steps: float  # forward passes, that over the prompt included: the plain loop needs T
    acceptance: float  # accepted / verified drafts; each of an image's T codes was verified once


class SlotCache(Cache):
    """Keys and values of `slots` positions per row; a pass writes the positions `slots_KW` of its rows.

    A row's token at position s lies in slot s, so what was rejected is overwritten by the pass that replaces it.
    """

    def __init__(self, slots: int):
        super().__init__(layers=[])
        self.slots = slots
        self.stored: list[list[torch.Tensor]] = []  # per layer: keys and values, each [K, slots, heads, head_dim]

    def begin(self, slots_KW: torch.Tensor) -> torch.Tensor:
        """Say where the next pass writes; returns its causal mask [K, 1, W, slots up to the last one used]."""
        self.at = (torch.arange(len(slots_KW), device=slots_KW.device).unsqueeze(-1), slots_KW)
        self.used = int(slots_KW.max()) + 1
        return (torch.arange(self.used, device=slots_KW.device) <= slots_KW.unsqueeze(-1)).unsqueeze(1)

    def update(
        self, keys_KHWD: torch.Tensor, values_KHWD: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, ...]:
        """Write a layer's new keys and values; returns all of them, [K, heads, slots, head_dim]."""
        if layer_idx == len(self.stored):
            rows, heads, _, size = keys_KHWD.shape
            self.stored.append([keys_KHWD.new_zeros(rows, self.slots, heads, size) for _ in range(2)])
        for stored, new in zip(self.stored[layer_idx], (keys_KHWD, values_KHWD), strict=True):
            stored[self.at] = new.transpose(1, 2)
        return tuple(stored[:, : self.used].transpose(1, 2) for stored in self.stored[layer_idx])

    def keep(self, rows_K: torch.Tensor) -> None:
        """Drop the rows that are False in `rows_K`."""
        self.stored = [[tensor[rows_K] for tensor in layer] for layer in self.stored]


def redraw(
    drafts_BW: torch.Tensor, q_BWC: torch.Tensor, p_BWC: torch.Tensor, uniforms_B2W: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn draws from q into draws from p, changing as few of them as possible (speculative sampling, 2211.17192).

    A draft x is kept with probability min(1, p(x) / q(x)), and otherwise replaced by a draw from norm(max(0, p - q)).

    Args:
        drafts_BW: codes drawn from `q_BWC`.
        q_BWC: probabilities over the codebook that the drafts were drawn from.
        p_BWC: probabilities to draw from.
        uniforms_B2W: float64 in [0, 1), one to verify and one to replace each draft.

    Returns:
        Codes [B, W] drawn from p, and bool [B, W]: whether the draft was kept.
    """
    codes_BW1 = drafts_BW.unsqueeze(-1)
    kept_BW = uniforms_B2W[:, 0] * q_BWC.gather(-1, codes_BW1).squeeze(-1) < p_BWC.gather(-1, codes_BW1).squeeze(-1)
    tokens_BW, rejected_BW = drafts_BW.clone(), ~kept_BW
    p_RC = p_BWC[rejected_BW]
    excess_RC = (p_RC - q_BWC[rejected_BW]).clamp(min=0)
    # Where p and q are equal up to rounding, there may be no excess to draw from.
    excess_RC = torch.where(excess_RC.sum(-1, keepdim=True) > 0, excess_RC, p_RC)
    tokens_BW[rejected_BW] = draw_codes(excess_RC.log(), uniforms_B2W[:, 1][rejected_BW])[0]
    return tokens_BW, kept_BW


@torch.no_grad()
def sample_codes_jacobi(
    model: Qwen2ForCausalLM,
    prompts: list[list[int]],
    layout: ImageLayout,
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    unconditional: list[list[int]] | None = None,
    window: int = 16,
) -> tuple[torch.Tensor, JacobiStatistics]:
    """Draw one image per prompt; codes int64 [B, T]. Their distribution is that of the plain loop, code by code.

    A pass reads the last final code and window - 1 drafts, and gives p for `window` positions. Every position's draft,
    drawn from its q, is then redrawn from p (`redraw`), and p becomes its q. The codes up to and including the first
    draft that was not kept are final, as their p was computed after final codes. The others are the next pass's
    drafts. Positions that enter the window repeat the last draft: a draw from the q that is 1 there.

    Why it is lossless: the model is causal. So the p and q of a position in every pass, and the pass in which it
    becomes final, are functions of the draws at the positions to its left and of nothing else. Given those, its code
    is a draw from its first q, after every pass a draw from that pass's p, and so in the end from the true p.

    The redrawing is that of MC-SJD (arXiv 2510.24211): it keeps most of the drafts that later ones were drawn after.
    Passes per image on a trained policy (T 64, window 16, guidance 3, 288 images): 21.1; drawing later drafts anew
    from p: 22.0; leaving them as they are: 35.4. Entering drafts from the last position's p: 21.4; uniform: 26.2.

    Not done: proactive drafting (SJD-PAC, arXiv 2603.18599), several drafts for the first position, each with a row of
    its own. See docs/decisions.md.

    Args:
        model: the policy.
        prompts: prompt ids, of any lengths.
        layout: where the visual ids are.
        seeds: one per prompt; row b's image depends on its prompts and `seeds[b]`, not on the rest of the batch.
        sampling: what p is; temperature 0 gives the plain loop's greedy codes.
        unconditional: the other context of every prompt, with guidance; decoded in the same batch.
        window: positions per pass.
    """
    device = model.get_input_embeddings().weight.device
    contexts, total = [*prompts, *(unconditional or [])], layout.tokens
    copies, longest = len(contexts) // len(prompts), max(map(len, contexts))
    head_CH = model.lm_head.weight[layout.visual_offset : layout.vocabulary_size]
    # An image takes at most T passes. As every pass has its own numbers, a row's do not depend on the batch.
    uniforms_BS2W = torch.from_numpy(
        np.stack([uniform_stream(seed, total * 2 * window).reshape(total, 2, window) for seed in seeds])
    ).to(device)
    codes_BT = torch.zeros(len(prompts), total + window, dtype=torch.long, device=device)  # T, then what juts out
    steps_B, accepted_B = torch.zeros(2, len(prompts), dtype=torch.long, device=device)

    # A: images that are not finished; K = copies * A: their contexts.
    image_A = torch.arange(len(prompts), device=device)
    final_A = torch.zeros_like(image_A)  # codes that are final
    lengths_K = torch.tensor([len(ids) for ids in contexts], device=device)
    cache = SlotCache(longest + total + window)
    # The first pass reads the prompts. Their padding, on the left, goes to slots behind the row's own: the causal mask
    # hides these until they are overwritten. Its window is one position, whose draft is code 0.
    ids_KW = torch.tensor([[0] * (longest - len(ids)) + ids for ids in contexts], device=device)
    slots_KW = (torch.arange(longest, device=device) - (longest - lengths_K).unsqueeze(-1)) % longest
    width = 1
    drafts_AW = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
    q_AWC = torch.zeros(len(prompts), width, layout.codebook_size, device=device)
    q_AWC[..., 0] = 1
    for step in range(total):
        hidden_KWH = model.model(
            input_ids=ids_KW,
            attention_mask=cache.begin(slots_KW),
            position_ids=slots_KW,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -width:]
        logits_AWC = visual_logits(hidden_KWH, head_CH)
        if unconditional:
            conditional_AWC, unconditional_AWC = logits_AWC.chunk(2)
            logits_AWC = guided_logits(conditional_AWC, unconditional_AWC, sampling.guidance_scale)
        p_AWC = sampling_log_probs(logits_AWC, sampling).exp()
        if not sampling.temperature:
            p_AWC = torch.zeros_like(p_AWC).scatter_(-1, p_AWC.argmax(-1, keepdim=True), 1)
        tokens_AW, kept_AW = redraw(drafts_AW, q_AWC, p_AWC, uniforms_BS2W[image_A, step, :, :width])

        codes_BT[image_A.unsqueeze(-1), final_A.unsqueeze(-1) + torch.arange(width, device=device)] = tokens_AW
        kept_A = kept_AW.long().cumprod(-1).sum(-1)
        advance_A = torch.minimum(kept_A + 1, (total - final_A).clamp(max=width))
        steps_B[image_A] += 1
        accepted_B[image_A] += torch.minimum(kept_A, advance_A)
        final_A = final_A + advance_A
        going_A = final_A < total
        if not going_A.any():
            break
        if not going_A.all():
            image_A, final_A, advance_A = image_A[going_A], final_A[going_A], advance_A[going_A]
            tokens_AW, p_AWC = tokens_AW[going_A], p_AWC[going_A]
            lengths_K = lengths_K[going_A.repeat(copies)]
            cache.keep(going_A.repeat(copies))

        # Move the window; positions behind its old end repeat the last draft.
        old_width, width = width, min(window, total - int(final_A.min()))
        source_AW = advance_A.unsqueeze(-1) + torch.arange(width, device=device)
        entering_AW = source_AW >= old_width
        source_AW = source_AW.clamp(max=old_width - 1)
        last_A1 = tokens_AW.gather(-1, advance_A.unsqueeze(-1) - 1)
        drafts_AW = tokens_AW.gather(-1, source_AW)
        q_AWC = p_AWC[torch.arange(len(image_A), device=device).unsqueeze(-1), source_AW]
        q_AWC[entering_AW] = 0
        q_AWC[entering_AW, drafts_AW[entering_AW]] = 1
        ids_KW = torch.cat([last_A1, drafts_AW[:, :-1]], dim=1).repeat(copies, 1) + layout.visual_offset
        first_K = lengths_K - 1 + final_A.repeat(copies)
        slots_KW = first_K.unsqueeze(-1) + torch.arange(width, device=device)
    statistics = JacobiStatistics(steps_B.double().mean().item(), accepted_B.double().mean().item() / total)
    return codes_BT[:, :total], statistics
