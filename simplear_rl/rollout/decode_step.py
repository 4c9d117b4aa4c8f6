"""A decoding step with everything in its place: fused projections, one cache, positions on the device.

Transformers' own step costs 20 ms on an H100, mostly Python (docs/timings.md). This one is a fixed sequence of
operators without Python decisions in between, so that a CUDA graph can replay it.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from simplear_rl.errors import UserError
from simplear_rl.policy.visual_head import visual_logits
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rollout.decode_operators import Operators, Place

FEW = 2  # contexts: up to so many, matrix-vector products are faster (docs/timings.md)


class DecodeStep:
    """The next code's logits for rows, called contexts, whose next tokens share a column of the cache.

    Args:
        model: a Qwen2 policy. Its projections of one input become parts of one fused tensor: weights that are loaded
            into the model, in place, are the step's.
        layout: where the visual ids are.
        columns: of the cache: the longest prompt and the image.

    Raises:
        UserError: config.json asks for what only Transformers' own step and vLLM compute.
    """

    def __init__(self, model: Qwen2ForCausalLM, layout: ImageLayout, columns: int):
        self.model, self.layout, self.columns = model, layout, columns
        config, weight = model.config, model.lm_head.weight
        _require_plain(config)
        self.layers = [
            (
                layer.input_layernorm.weight,
                *_fused([layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]),
                layer.self_attn.o_proj.weight,
                layer.post_attention_layernorm.weight,
                _fused([layer.mlp.gate_proj, layer.mlp.up_proj])[0],
                layer.mlp.down_proj.weight,
            )
            for layer in model.model.layers
        ]
        size = config.hidden_size // config.num_attention_heads
        positions = torch.arange(columns, dtype=torch.float32, device=weight.device)
        exponents = torch.arange(0, size, 2, dtype=torch.float32, device=weight.device) / size
        angles = positions.unsqueeze(-1) / config.rope_parameters["rope_theta"] ** exponents
        self.angles = torch.stack([angles.cos(), angles.sin()])
        self.column = torch.zeros(1, dtype=torch.int32, device=weight.device)
        self.ids = torch.zeros(0, dtype=torch.long, device=weight.device)
        self.keys = self.values = weight.new_zeros(0)
        self.few = self.many = Operators()
        if weight.device.type == "cuda":
            from simplear_rl.rollout.decode_few import FewKernels  # Triton comes with torch for CUDA
            from simplear_rl.rollout.decode_kernels import Kernels

            self.few, self.many = FewKernels(), Kernels()

    @property
    def room(self) -> int:
        """Contexts that the cache has memory for."""
        return len(self.ids)

    def reserve(self, contexts: int) -> None:
        """Replace the cache by one for `contexts` rows; graphs of the old one hold its memory, and do not know it."""
        config, weight = self.model.config, self.model.lm_head.weight
        self.keys = self.values = weight.new_zeros(0)  # two caches at a time might not fit
        shape = (len(self.layers), contexts, config.num_key_value_heads, self.columns, 2 * self.angles.shape[-1])
        self.keys, self.values = (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        self.ids = torch.zeros(contexts, dtype=torch.long, device=weight.device)
        self.first = torch.zeros(contexts, dtype=torch.int32, device=weight.device)

    @property
    def head(self) -> torch.Tensor:
        """The visual rows of the head: text ids are never scored."""
        return self.model.lm_head.weight[self.layout.visual_offset : self.layout.vocabulary_size]

    def begin(self, prompts: Sequence[list[int]]) -> torch.Tensor:
        """Fill the cache with prompts, of any lengths; returns the first code's logits, float32 [K, codebook_size]."""
        longest, device = max(map(len, prompts)), self.ids.device
        # The images of a group have one prompt, and all guided ones the same unconditional one: each is computed once.
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        rows = torch.tensor([distinct.index(tuple(ids)) for ids in prompts], device=device)
        # Padding on the left: the first codes share a column. Padded columns lie before a row's first and are not seen.
        ids_QP = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in distinct], device=device)
        first_Q = torch.tensor([longest - len(ids) for ids in distinct], device=device)
        columns_P = torch.arange(longest, device=device)
        cache = DynamicCache()
        hidden_QH = self.model.model(
            input_ids=ids_QP,
            attention_mask=(columns_P >= first_Q.unsqueeze(-1)).long(),
            position_ids=(columns_P - first_Q.unsqueeze(-1)).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        for i, layer in enumerate(cache.layers):
            self.keys[i, : len(prompts), :, :longest] = layer.keys[rows]
            self.values[i, : len(prompts), :, :longest] = layer.values[rows]
        self.first[: len(prompts)] = first_Q[rows]
        self.column.fill_(longest)
        return visual_logits(hidden_QH, self.head)[rows]

    def __call__(self, contexts: int) -> torch.Tensor:
        """Logits, float32 [K, codebook_size], after the tokens `ids` of the first `contexts` rows; goes a column on."""
        eps, operators = self.model.config.rms_norm_eps, self.few if contexts <= FEW else self.many
        place = Place(self.angles, self.column, self.first[:contexts])
        x_KH = functional.embedding(self.ids[:contexts], self.model.model.embed_tokens.weight)
        delta_KH = None
        for i, (norm, qkv, bias, out, norm_2, gate_up, down) in enumerate(self.layers):
            keys, values = self.keys[i, :contexts], self.values[i, :contexts]
            x_KH, qkv_KF = operators.norm_linear(x_KH, delta_KH, norm, eps, qkv, bias)
            attended_KF = operators.attend(qkv_KF, place, keys, values)
            delta_KH = operators.linear(attended_KF, out)
            x_KH, gated_KF = operators.norm_gated(x_KH, delta_KH, norm_2, eps, gate_up)
            delta_KH = operators.linear(gated_KF, down)
        logits_KC = operators.norm_logits(x_KH, delta_KH, self.model.model.norm.weight, eps, self.head)
        self.column += 1
        return logits_KC


def _require_plain(config: Qwen2Config) -> None:
    """Raise UserError if config.json asks for more than the step computes: that of Qwen2.5 as it is published."""
    found = {"rope_type": config.rope_parameters["rope_type"], "hidden_act": config.hidden_act}
    found |= {"layer_types": ", ".join(dict.fromkeys(config.layer_types))}
    expected = {"rope_type": "default", "hidden_act": "silu", "layer_types": "full_attention"}
    if other := [f"{key} {found[key]}, not {value}" for key, value in expected.items() if found[key] != value]:
        raise UserError(
            f"engine transformers: its decoding step lacks what the policy's config.json has, {'; '.join(other)}: "
            "take the engine vllm, or sjd"
        )


def _fused(projections: list[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One weight and bias of several projections, which become their parts."""
    fused: dict[str, torch.Tensor] = {}
    for name in ("weight", "bias"):
        if getattr(projections[0], name) is not None:
            fused[name] = torch.cat([getattr(projection, name).detach() for projection in projections])
            for projection, part in zip(
                projections, fused[name].split([p.out_features for p in projections]), strict=True
            ):
                getattr(projection, name).data = part
    return fused["weight"], fused.get("bias")
