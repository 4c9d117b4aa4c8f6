"""The engine that needs no vLLM, on a decode step of our own; and `sample_codes`, the plain loop on Transformers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, Qwen2ForCausalLM

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.device import default_device
from simplear_rl.errors import UserError
from simplear_rl.policy.guidance import guided_logits
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.rollouts import Draw, Rollout
from simplear_rl.policy.sampling import Sampling, draw_each, uniform_stream
from simplear_rl.policy.visual_head import visual_logits
from simplear_rl.policy.vocabulary import ImageLayout, PromptEncoder, read_encoder, read_layout
from simplear_rl.rollout.decode_step import DecodeStep
from simplear_rl.rollout.decoding import Decoder
from simplear_rl.rollout.jacobi import sample_codes_jacobi
from simplear_rl.weights.receiver import WeightReceiver
from simplear_rl.weights.snapshot import checksum


class TransformersEngine(WeightReceiver):
    """A policy folder in Transformers, without vLLM: batches of images, or speculative Jacobi decoding (`sjd`).

    Implements Engine (engine.py). `config.max_concurrent` contexts are one batch, whose cache takes what it takes:
    `kv_cache_gib` is vLLM's.

    Raises:
        UserError: see `load_policy`.
    """

    def __init__(self, policy: Path, config: EngineConfig):
        self.config, self.layout = config, read_layout(policy)
        self.encode = read_encoder(policy, config.max_prompt_tokens)
        self.model = load_policy(policy, getattr(torch, config.dtype))[0].to(default_device()).eval()
        if config.type == "transformers":
            columns = config.max_prompt_tokens + self.layout.tokens
            self.decoder = Decoder(DecodeStep(self.model, self.layout, columns))

    def generate(self, draw: Draw) -> Iterator[Rollout]:
        """See Engine. Behaviour log-probs of `sjd` are not computed: they are NaN.

        Raises:
            UserError: a prompt is empty or too long, or a guided image has more contexts than `max_concurrent`.
        """
        ids = {prompt.index: self.encode(prompt.text) for prompt in draw.prompts}
        other = self.encode.unconditional(draw)
        size = self.config.max_concurrent // (2 if other else 1)
        if not size:
            raise UserError(
                f"a guided image has 2 contexts, engine.max_concurrent is {self.config.max_concurrent}: raise it"
            )
        images = [(prompt, k) for prompt in draw.prompts for k in range(draw.samples)]
        drawn: list[tuple[np.ndarray, np.ndarray]] = []  # of the prompts that are not complete
        complete = iter(draw.prompts)
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            contexts = [ids[prompt.index] for prompt, _ in batch]
            seeds = [draw.stream_seed(prompt, k) for prompt, k in batch]
            codes_BT, log_probs_BT = self._draw(contexts, [other] * len(batch) if other else None, seeds, draw.sampling)
            drawn.extend(zip(codes_BT, log_probs_BT, strict=True))
            while len(drawn) >= draw.samples:
                codes, log_probs = (np.stack(rows) for rows in zip(*drawn[: draw.samples], strict=True))
                del drawn[: draw.samples]
                prompt = next(complete)
                yield draw.rollout(prompt, ids[prompt.index], other, codes, log_probs, self.version)

    def _draw(
        self,
        contexts: list[list[int]],
        unconditional: list[list[int]] | None,
        seeds: Sequence[tuple[int, ...]],
        sampling: Sampling,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes and log-probs, [B, T] each, of one batch."""
        if self.config.type == "transformers":
            return self.decoder(contexts, unconditional, seeds, sampling)
        with torch.no_grad():
            codes_BT, _ = sample_codes_jacobi(self.model, contexts, self.layout, seeds, sampling, unconditional)
        return codes_BT.cpu().numpy(), np.full(codes_BT.shape, np.nan, np.float32)

    @torch.no_grad()
    def _load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        held = dict(self.model.named_parameters())
        for name, tensor in tensors:
            held[name].copy_(tensor)

    def _settle(self) -> None:
        """Nothing is kept of the old weights: every batch begins with an empty cache."""

    def checksum(self) -> dict[str, str]:
        """See WeightReceiver."""
        return checksum(self.model.named_parameters())


def draw_together(
    sample: Callable[..., torch.Tensor], draw: Draw, encode: PromptEncoder, layout: ImageLayout, version: int
) -> list[Rollout]:
    """Draw all images of `draw` in one batch, with the weights of `version`; log-probs are not computed: they are NaN.

    `sample` is sample_codes of a model.
    """
    ids, other = [encode(prompt.text) for prompt in draw.prompts], encode.unconditional(draw)
    contexts = [row for row in ids for _ in range(draw.samples)]
    seeds = [draw.stream_seed(prompt, k) for prompt in draw.prompts for k in range(draw.samples)]
    codes_BT = sample(contexts, layout, seeds, draw.sampling, [other] * len(contexts) if other else None)
    codes_NGT = codes_BT.cpu().numpy().reshape(len(ids), draw.samples, -1)
    unknown = np.full(codes_NGT.shape[1:], np.nan)
    return [
        draw.rollout(prompt, prompt_ids, other, codes, unknown, version)
        for prompt, prompt_ids, codes in zip(draw.prompts, ids, codes_NGT, strict=True)
    ]


@torch.no_grad()
def sample_codes(
    model: Qwen2ForCausalLM,
    prompts: list[list[int]],
    layout: ImageLayout,
    seeds: Sequence[Sequence[int]],
    sampling: Sampling | None = None,
    unconditional: list[list[int]] | None = None,
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
    cache = DynamicCache()
    head = model.lm_head.weight[layout.visual_offset : layout.vocabulary_size]
    codes: list[torch.Tensor] = []
    next_ids, columns = ids_KP, torch.arange(longest, device=device)
    for t in range(layout.tokens):
        hidden = model.model(
            input_ids=next_ids,
            attention_mask=mask_KL[:, : longest + t],
            position_ids=positions_KL[:, columns],
            past_key_values=cache,
            cache_position=columns,
            use_cache=True,
        ).last_hidden_state[:, -1]
        logits_BC = visual_logits(hidden, head)
        if unconditional:
            logits_BC = guided_logits(logits_BC[:images], logits_BC[images:], sampling.guidance_scale)
        codes.append(draw_each(logits_BC, uniforms_BT[:, t], sampling)[0])
        next_ids = (codes[-1] + layout.visual_offset).repeat(len(contexts) // images).unsqueeze(-1)
        columns = columns[-1:] + 1
    return torch.stack(codes, dim=1)
