"""The engine on vLLM: prompts in, groups of sampled images (as codes) with their log-probs out."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# One process: weights are updated in place and the engine steps only when it is asked to.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# Bound to cores, the engines of one machine would all sit on the same ones.
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
# CodeSampler, a logits processor, is written for vLLM's V1 model runner.
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
# vLLM's one compiled function, ranks of log-probs, is not used and takes seconds to compile. By environment, since
# PyTorch's own setting would hold for this thread alone.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
# Triton's attention would round float32 to tf32, of 10 bits, before it multiplies.
os.environ["TRITON_F32_DEFAULT"] = "ieee"

import numpy as np
import torch
from vllm import LLM, CompletionOutput, ModelRegistry, RequestOutput, SamplingParams
from vllm.logprobs import Logprob
from vllm.sampling_params import RequestOutputKind

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.device import default_device
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Draw, Rollout
from simplear_rl.policy.vocabulary import read_encoder, read_layout
from simplear_rl.rollout.pairing import AsyncPairScheduler, PairScheduler
from simplear_rl.rollout.vllm_policy import CodeSampler, VisualQwen2ForCausalLM
from simplear_rl.weights.receiver import WeightReceiver
from simplear_rl.weights.snapshot import checksum

UNCONDITIONAL = "/unconditional"  # ends the name of a pair's second request
ON_CPUS = {"scheduler_cls": PairScheduler, "async_scheduling": False, "enforce_eager": True}
# Graphs of the decoding steps without torch.compile. New weights are written in place, so graphs stay valid.
ON_GPUS = {
    "scheduler_cls": AsyncPairScheduler,
    "async_scheduling": True,
    "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
}
ModelRegistry.register_model("VisualQwen2ForCausalLM", VisualQwen2ForCausalLM)


class VllmEngine(WeightReceiver):
    """A policy folder in vLLM. Raises UserError if the folder is no policy or the cache is too small for it."""

    def __init__(self, policy: Path, config: EngineConfig):
        self.layout = read_layout(policy)
        self.encode = read_encoder(policy, config.max_prompt_tokens)
        try:
            self.llm = LLM(
                model=str(policy),
                hf_overrides={"architectures": ["VisualQwen2ForCausalLM"]},
                skip_tokenizer_init=True,
                load_format="safetensors",  # never pickled weights: loading those can run code
                dtype=config.dtype,
                max_model_len=config.max_prompt_tokens + self.layout.tokens,
                max_num_seqs=config.max_concurrent,
                kv_cache_memory_bytes=int(config.kv_cache_gib * 2**30),
                gpu_memory_utilization=0.01,  # beside the above only what must be free at start: others share the GPU
                logits_processors=[CodeSampler],
                logprobs_mode="processed_logits",
                generation_config="vllm",  # not the checkpoint's own: it may carry a repetition penalty and EOS ids
                disable_log_stats=True,
                **(ON_GPUS if default_device() == "cuda" else ON_CPUS),
            )
        except ValueError as error:  # for example a cache that holds not even one image
            raise UserError(f"vLLM does not start with kv_cache_gib={config.kv_cache_gib:g}: {error}") from error
        core = self.llm.llm_engine.engine_core.engine_core
        self.scheduler: PairScheduler = core.scheduler
        # CodeSampler reads no tokens: without this line every step would wait for those of the step before it.
        core.model_executor.driver_worker.worker.model_runner.input_batch.logitsprocs_need_output_token_ids = False
        self.llm.apply_model(lambda model: model.pack())

    def generate(self, draw: Draw) -> Iterator[Rollout]:
        """Draw images; yield each prompt's group, in order, as soon as it is complete.

        Raises:
            UserError: a prompt is empty, longer than `max_prompt_tokens`, or can never fit; nothing is drawn then.
        """
        ids = [self.encode(prompt.text) for prompt in draw.prompts]
        unconditional = self.encode.unconditional(draw)
        self.check_fits([max(ids, key=len), *([unconditional] if unconditional else [])])
        images = [(i, k) for i in range(len(draw.prompts)) for k in range(draw.samples)]
        self._empty_cache()  # what was drawn before, an evaluation for instance, changes no rounding here
        try:
            for i, k in images:
                extra = {"seed": list(draw.stream_seed(draw.prompts[i], k)), "sampling": draw.sampling}
                self.add_image(f"{i}/{k}", ids[i], unconditional, extra, logprobs=0)
            finished: dict[str, RequestOutput] = {}
            for i, prompt in enumerate(draw.prompts):
                members = [f"{i}/{k}" for k in range(draw.samples)]
                while not all(member in finished for member in members):
                    outputs = self.llm.llm_engine.step()
                    finished.update((output.request_id, output) for output in outputs if output.finished)
                group = [finished.pop(member).outputs[0] for member in members]
                codes = np.array([image.token_ids for image in group]) - self.layout.visual_offset
                log_probs = [[entry[token].logprob for token, entry in _positions(image)] for image in group]
                yield draw.rollout(prompt, ids[i], unconditional, codes, np.array(log_probs), self.version)
        finally:
            # What is left when the caller did not take every group.
            self.abort_images(f"{i}/{k}" for i, k in images)

    def add_image(
        self, name: str, prompt_ids: list[int], unconditional: list[int] | None, extra: dict[str, Any], **params: Any
    ) -> None:
        """Queue an image, one request or two; `extra` is read by CodeSampler, `params` are further SamplingParams."""
        if unconditional:
            pair = extra | {"pair": name, "unconditional": True}
            self._add(name + UNCONDITIONAL, unconditional, pair, params | {"output_kind": RequestOutputKind.FINAL_ONLY})
            extra = extra | {"pair": name}
        self._add(name, prompt_ids, extra, params)

    def _add(self, name: str, prompt_ids: list[int], extra: dict[str, Any], more: dict[str, Any]) -> None:
        params = {"output_kind": RequestOutputKind.FINAL_ONLY} | more
        self.llm.llm_engine.add_request(
            name,
            {"prompt_token_ids": prompt_ids},
            SamplingParams(
                temperature=0,
                max_tokens=self.layout.tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args=extra,
                **params,
            ),
        )

    def abort_images(self, names: Iterable[str]) -> None:
        """Forget images that are queued or drawn; names of others are passed over."""
        self.llm.llm_engine.abort_request([f"{name}{half}" for name in names for half in ("", UNCONDITIONAL)])

    def check_fits(self, contexts: list[list[int]]) -> None:
        """Raise UserError if an image with these contexts could never be admitted, see PairScheduler."""
        slots, blocks = self.scheduler.max_num_running_reqs, self.scheduler.capacity
        needed = sum(self.scheduler.blocks(len(ids), self.layout.tokens) for ids in contexts)
        if len(contexts) > slots:
            raise UserError(f"a guided image takes 2 slots, max_concurrent is {slots}: raise it")
        if needed > blocks:
            raise UserError(
                f"an image takes {needed} blocks of the key-value cache, the engine has {blocks}: "
                f"raise kv_cache_gib by a factor of {needed / blocks:.2f}"
            )

    def _load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        if self.llm.llm_engine.has_unfinished_requests():
            raise RuntimeError("weights cannot change while images are being drawn")
        self.llm.apply_model(lambda model: model.load_weights(tensors))

    def _settle(self) -> None:
        self.llm.apply_model(lambda model: model.pack())
        self._empty_cache()

    def _empty_cache(self) -> None:
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be emptied: images are being drawn")

    def checksum(self) -> dict[str, str]:
        """See WeightReceiver."""
        return self.llm.apply_model(lambda model: checksum(model.named_weights()))[0]


def _positions(image: CompletionOutput) -> Iterator[tuple[int, dict[int, Logprob]]]:
    """Token and log-probs of every position of an image."""
    return zip(image.token_ids, image.logprobs, strict=True)
