"""Sampling with Transformers alone: a batch of prompts of unequal lengths, guided or not, one key-value cache."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, Qwen2ForCausalLM, StaticCache

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.device import default_device
from simplear_rl.errors import UserError
from simplear_rl.policy.guidance import guided_logits
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.rollouts import Prompt, Rollout
from simplear_rl.policy.sampling import Sampling, draw_codes, sampling_log_probs, uniform_stream
from simplear_rl.policy.vocabulary import ImageLayout, read_encoder, read_layout
from simplear_rl.rollout.jacobi import sample_codes_jacobi


class TransformersEngine:
    """A policy folder in Transformers: the plain loop, or speculative Jacobi decoding (`config.type: sjd`).

    Implements Engine (`rollout/engine.py`). Its weights stay those of the folder. `config.max_concurrent` contexts are
    one batch; there is no `kv_cache_gib`.

    Raises:
        UserError: see `load_policy`.
    """

    def __init__(self, policy: Path, config: EngineConfig):
        self.config, self.layout, self.version = config, read_layout(policy), 0
        self.encode = read_encoder(policy, config.max_prompt_tokens)
        self.model = load_policy(policy, getattr(torch, config.dtype))[0].to(default_device()).eval()

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        samples: int,
        seed: tuple[int, int],
        sampling: Sampling,
        negative_prompt: str | None = None,
    ) -> Iterator[Rollout]:
        """See VllmEngine.generate. Behaviour log-probs are not computed: they are NaN.

        Raises:
            UserError: a prompt is empty or too long, or a guided image has more contexts than `max_concurrent`.
        """
        ids = {prompt: self.encode(prompt.text) for prompt in prompts}
        guided = sampling.guidance_scale != 1
        other = (self.encode(negative_prompt) if negative_prompt else self.encode.null) if guided else None
        size = self.config.max_concurrent // (2 if guided else 1)
        if not size:
            raise UserError(
                f"a guided image has 2 contexts, engine.max_concurrent is {self.config.max_concurrent}: raise it"
            )
        images = [(prompt, k) for prompt in prompts for k in range(samples)]
        drawn: list[np.ndarray] = []  # of the prompts that are not complete
        complete = iter(prompts)
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            drawn.extend(self._draw(batch, ids, seed, sampling, other))
            while len(drawn) >= samples:
                prompt, codes = next(complete), np.stack(drawn[:samples]).astype(np.uint16)
                del drawn[:samples]
                log_probs = np.full(codes.shape, np.nan, np.float32)
                yield Rollout(prompt, ids[prompt], other, codes, log_probs, sampling, self.version, seed)

    def _draw(
        self,
        images: list[tuple[Prompt, int]],
        ids: dict[Prompt, list[int]],
        seed: tuple[int, int],
        sampling: Sampling,
        other: list[int] | None,
    ) -> np.ndarray:
        """Codes [B, T] of one batch."""
        seeds = [(*seed, prompt.index, k) for prompt, k in images]
        contexts = [ids[prompt] for prompt, _ in images]
        unconditional = [other] * len(images) if other else None
        if self.config.type == "sjd":
            codes_BT, _ = sample_codes_jacobi(self.model, contexts, self.layout, seeds, sampling, unconditional)
        else:
            codes_BT = sample_codes(self.model, contexts, self.layout, seeds, sampling, unconditional)
        return codes_BT.cpu().numpy()


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
