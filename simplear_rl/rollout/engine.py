"""The rollout engine: prompts in, groups of sampled images (as codes) with their log-probs out, on vLLM."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

# One process: weights are updated in place and the engine steps only when it is asked to.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
# vLLM's one compiled function, ranks of log-probs, is not used and takes seconds to compile on a CPU.
os.environ["TORCH_COMPILE_DISABLE"] = "1"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# Bound to cores, the engines of one machine would all sit on the same ones.
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
# The logits processor is written for the V1 runner, which CPUs use anyway.
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"

import numpy as np
from vllm import LLM, ModelRegistry, RequestOutput, SamplingParams
from vllm.sampling_params import RequestOutputKind

from simplear_rl.config import EngineConfig
from simplear_rl.learning.weights import Weights, checksum
from simplear_rl.policy.vocabulary import read_encoder, read_layout
from simplear_rl.rollout.types import Prompt, Rollout
from simplear_rl.rollout.vllm_policy import CodeSampler, VisualQwen2ForCausalLM

ModelRegistry.register_model("VisualQwen2ForCausalLM", VisualQwen2ForCausalLM)


class RolloutEngine:
    """A policy folder in vLLM."""

    def __init__(self, policy: Path, config: EngineConfig):
        self.layout = read_layout(policy)
        self.encode = read_encoder(policy, config.max_prompt_tokens)
        self.llm = LLM(
            model=str(policy),
            hf_overrides={"architectures": ["VisualQwen2ForCausalLM"]},
            skip_tokenizer_init=True,
            dtype=config.dtype,
            max_model_len=config.max_prompt_tokens + self.layout.tokens,
            max_num_seqs=config.max_concurrent,
            kv_cache_memory_bytes=int(config.kv_cache_gib * 2**30),
            logits_processors=[CodeSampler],
            logprobs_mode="processed_logits",
            generation_config="vllm",  # not the checkpoint's own: it may carry a repetition penalty and EOS ids
            enforce_eager=True,
            disable_log_stats=True,
        )
        self.version = 0

    def generate(
        self, prompts: Sequence[Prompt], samples: int, seed: tuple[int, int], temperature: float
    ) -> Iterator[Rollout]:
        """Draw `samples` images per prompt; yield each prompt's group, in order, as soon as it is complete.

        Args:
            prompts: each with its place in the step's list.
            samples: G, images per prompt.
            seed: (run seed, step), see `uniform_stream`.
            temperature: 0 is greedy.

        Raises:
            UserError: a prompt is empty or longer than `max_prompt_tokens`; nothing is drawn then.
        """
        ids = [self.encode(prompt.text) for prompt in prompts]
        engine = self.llm.llm_engine
        for i, prompt in enumerate(prompts):
            for k in range(samples):
                params = SamplingParams(
                    temperature=0,
                    max_tokens=self.layout.tokens,
                    ignore_eos=True,
                    logprobs=0,
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                    extra_args={"seed": [*seed, prompt.index, k], "temperature": temperature},
                )
                engine.add_request(f"{i}/{k}", {"prompt_token_ids": ids[i]}, params)
        finished: dict[str, RequestOutput] = {}
        for i, prompt in enumerate(prompts):
            members = [f"{i}/{k}" for k in range(samples)]
            while not all(member in finished for member in members):
                finished.update((output.request_id, output) for output in engine.step() if output.finished)
            group = [finished.pop(member).outputs[0] for member in members]
            yield Rollout(
                prompt=prompt,
                prompt_ids=ids[i],
                codes=(np.array([image.token_ids for image in group]) - self.layout.visual_offset).astype(np.uint16),
                log_probs=np.array(
                    [
                        [
                            position[token].logprob
                            for token, position in zip(image.token_ids, image.logprobs, strict=True)
                        ]
                        for image in group
                    ],
                    dtype=np.float32,
                ),
                weight_version=self.version,
                seed=seed,
            )

    def load_weights(self, weights: Weights) -> None:
        """Replace the weights, verify the checksum of what the engine then holds, and empty the prefix cache.

        Raises:
            RuntimeError: images are still being drawn, or the checksum differs from the sender's.
        """
        if self.llm.llm_engine.has_unfinished_requests():
            raise RuntimeError("weights cannot change while images are being drawn")
        self.llm.apply_model(lambda model: model.load_weights(weights.tensors.items()))
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache of the old weights could not be emptied")
        held = self.checksum()
        if held != weights.checksum:
            raise RuntimeError(f"weights of version {weights.version}: sent {weights.checksum}, engine holds {held}")
        self.version = weights.version

    def checksum(self) -> str:
        """Checksum of the weights in the engine, comparable with the learner's."""
        return self.llm.apply_model(lambda model: checksum(model.named_weights()))[0]
