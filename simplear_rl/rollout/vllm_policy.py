"""The policy inside vLLM: a Qwen2 whose head scores visual ids only, and the processor that draws the codes.

vLLM itself decodes greedily. `CodeSampler` turns each row of logits into a single finite entry: the code it drew from
the sample's own uniform stream, with the code's log-prob as value. vLLM then "chooses" that entry and, under
`logprobs_mode="processed_logits"`, hands its log-prob back.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams, _custom_ops
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from simplear_rl.policy.guidance import guided_logits
from simplear_rl.policy.sampling import Sampling, draw_each, uniform_stream
from simplear_rl.policy.visual_head import visual_logits
from simplear_rl.policy.vocabulary import ImageLayout


class VisualQwen2ForCausalLM(Qwen2ForCausalLM):
    """Qwen2 that computes the visual rows of its head and no others; text ids get -inf."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.layout = ImageLayout.of(vllm_config.model_config.hf_config)
        for module in self.modules():
            if isinstance(module, LinearBase):
                # The CPU build would replace linear weights by opaque buffers at load; kept, they can be updated in
                # place and their checksum taken, as on a GPU. `pack` makes such buffers beside them.
                module._cpu_skip_gemm_dispatch = True
        self.visual_head: Callable[[torch.Tensor], torch.Tensor] = self._plain_visual_head

    def pack(self) -> None:
        """On a CPU, copy the weights into the layout of oneDNN's matrix product; follows every change of weights."""
        if self.lm_head.weight.device.type != "cpu":
            return
        for module in self.modules():
            if isinstance(module, LinearBase):
                product = _packed_product(module.weight)
                module.cpu_linear = lambda x, _, bias, product=product: product(x, bias)
        product = _packed_product(self.lm_head.weight[self.visual].float())
        self.visual_head = lambda hidden_states: product(hidden_states.float())  # logits are float32, see visual_logits

    @property
    def visual(self) -> slice:
        """Rows of the head, and ids, that are codes."""
        return slice(self.layout.visual_offset, self.layout.vocabulary_size)

    def _plain_visual_head(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return visual_logits(hidden_states, self.lm_head.weight[self.visual])

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        logits = hidden_states.new_full((len(hidden_states), self.config.vocab_size), -torch.inf, dtype=torch.float32)
        logits[:, self.visual] = self.visual_head(hidden_states)
        return logits

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights as they are in the engine, under their Transformers names, fused layers taken apart."""
        layers = dict(self.named_modules())
        for name, parameter in self.named_parameters():
            parts = self._parts(layers[name.rpartition(".")[0]], name)
            rows = parameter[: self.config.vocab_size] if name == "model.embed_tokens.weight" else parameter
            yield from zip(parts, rows.split(list(parts.values())) if len(parts) > 1 else [rows], strict=True)

    @staticmethod
    def _parts(layer: Any, name: str) -> dict[str, int]:
        """Transformers names and row counts of the tensors that make up one vLLM parameter."""
        for fused, originals in Qwen2ForCausalLM.packed_modules_mapping.items():
            if f".{fused}." in name:
                return {name.replace(fused, part): n for part, n in zip(originals, layer.output_sizes, strict=True)}
        return {name: 0}


def _packed_product(weight: torch.Tensor) -> Callable[..., torch.Tensor]:
    handler = _custom_ops.create_onednn_mm(weight.t())
    return lambda x, bias=None: _custom_ops.onednn_mm(handler, x, bias)


class CodeSampler(LogitsProcessor):
    """Draws each image's next code, once for both of its contexts where it is guided.

    `SamplingParams.extra_args` states `seed` and `sampling`, and of a guided image's contexts `pair` and
    `unconditional`. A guided code is drawn from softmax(u + scale * (c - u)), and both rows are left with it.

    What a step needs is on the device, made anew only when the batch changes: a step asks the host for nothing. Every
    running context takes part in every step (PairScheduler), so that a count of steps is every context's position.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        self.layout, self.device = ImageLayout.of(vllm_config.model_config.hf_config), device
        self.requests: dict[int, _Request] = {}  # by row of the batch
        self.images: list[_Images] = []
        self.step = 0  # of this processor

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        # A request's state is made when its row is added: a later image may use the name of an earlier pair.
        changed = process_dict_updates(self.requests, batch_update, lambda params, *_: _Request(params, self.step))
        if changed:
            conditional = {row: request for row, request in sorted(self.requests.items()) if not request.unconditional}
            partner = {request.pair: row for row, request in self.requests.items() if request.unconditional}
            self.images = []
            for sampling in {request.sampling for request in conditional.values()}:
                rows = {row: request for row, request in conditional.items() if request.sampling == sampling}
                self.images.append(_Images(sampling, rows, partner, self.step, self.device))
            self.codes_B1 = torch.empty(len(self.requests), 1, dtype=torch.int64, device=self.device)
            self.log_probs_B1 = torch.empty(len(self.requests), 1, device=self.device)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        visual_BC = logits[:, self.layout.visual_offset : self.layout.vocabulary_size]
        for images in self.images:
            codes_I1, log_probs_I1 = images.draw(visual_BC, self.step)
            for rows in images.contexts:
                self.codes_B1[rows] = codes_I1
                self.log_probs_B1[rows] = log_probs_I1
        self.step += 1
        # Text ids have -inf from compute_logits.
        visual_BC.fill_(-torch.inf).scatter_(-1, self.codes_B1, self.log_probs_B1)
        return logits


class _Request:
    """One running context, and the uniform stream of its image."""

    def __init__(self, params: SamplingParams, first_step: int):
        self.sampling: Sampling = params.extra_args["sampling"]
        self.pair: str | None = params.extra_args.get("pair")
        self.unconditional: bool = params.extra_args.get("unconditional", False)
        self.uniforms = uniform_stream(params.extra_args["seed"], params.max_tokens)
        self.first_step = first_step


class _Images:
    """The running images of one `Sampling`: their rows of the batch and their uniform streams, on the device."""

    def __init__(
        self,
        sampling: Sampling,
        requests: dict[int, _Request],
        partner: dict[str | None, int],
        step: int,
        device: torch.device,
    ):
        self.sampling = sampling
        rows = [list(requests)]
        if sampling.guidance_scale != 1:
            rows.append([partner[request.pair] for request in requests.values()])
        self.contexts = [_index(half, device) for half in rows]
        self.first_step = step
        # Each stream begins with the number of the next step; the used ones go to its end.
        streams = [np.roll(request.uniforms, request.first_step - step) for request in requests.values()]
        self.uniforms_IT = torch.from_numpy(np.stack(streams)).to(device)

    def draw(self, visual_BC: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and their log-probs, [I, 1] each."""
        logits_IC = visual_BC[self.contexts[0]]
        if len(self.contexts) == 2:
            unconditional_IC = visual_BC[self.contexts[1]]
            logits_IC = guided_logits(logits_IC, unconditional_IC, self.sampling.guidance_scale, out=logits_IC)
        codes_I, log_probs_I = draw_each(logits_IC, self.uniforms_IT[:, step - self.first_step], self.sampling)
        return codes_I.unsqueeze(-1), log_probs_I.unsqueeze(-1)


def _index(rows: list[int], device: torch.device) -> slice | torch.Tensor:
    """What selects `rows` of a batch. Evenly spaced ones, as most are, are a slice: selecting them copies nothing."""
    spacing = rows[1] - rows[0] if len(rows) > 1 else 1
    if spacing > 0 and rows == list(range(rows[0], rows[-1] + 1, spacing)):
        return slice(rows[0], rows[-1] + 1, spacing)
    return torch.tensor(rows, device=device)
