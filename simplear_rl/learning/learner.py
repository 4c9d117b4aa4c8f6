"""The learner: a policy under DeepSpeed. One instance is one rank.

It sets up, runs passes, refuses what is not finite, steps, and gives away, saves and loads its weights. What a stage
optimises stands beside it: supervised.py, policy_gradient.py, preference.py.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import nn

from simplear_rl.config.learner import LearnerConfig
from simplear_rl.device import default_device
from simplear_rl.errors import UserError
from simplear_rl.learning.ema import Ema
from simplear_rl.learning.flops import ModelSize, peak_flops
from simplear_rl.learning.optimizer import parameter_groups, schedule, weight_decays
from simplear_rl.policy.model import load_policy, save_policy
from simplear_rl.policy.rollouts import Draw, Rollout
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rollout.transformers_engine import draw_together, sample_codes
from simplear_rl.run.checkpoints import BEHIND
from simplear_rl.run.guards import Evidence, refusal
from simplear_rl.weights.folder import read_weights
from simplear_rl.weights.group import WeightGroup, meeting_place
from simplear_rl.weights.sharing import shared
from simplear_rl.weights.snapshot import BUCKET_BYTES, Weights, checksum, in_buckets

# Gradients of bfloat16 are summed over passes, and between ranks, in float32; at once, so that no two copies are kept.
IN_BFLOAT16 = {
    "bf16": {"enabled": True, "immediate_grad_update": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
}


class Computation(nn.Module):
    """Runs any function of the policy inside DeepSpeed's forward, where ZeRO-3 has the weights at hand."""

    def __init__(self, policy: nn.Module):
        super().__init__()
        self.policy = policy

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self.policy, *args)


class HostCopies(TorchCheckpointEngine):
    """In DeepSpeed's `save_checkpoint`: keeps in host memory, byte for byte, the files that would be written.

    DeepSpeed's own engines that write in the background need compiled operators, or finish before the next step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[Path, BytesIO] = {}

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Keep a file. It has no part in the state's memory, which the next step overwrites."""
        # More than half of the time, and nobody reads it: a checkpoint has checksums of its own. Holds for this thread.
        torch.serialization.set_crc32_options(False)
        torch.save(state_dict, self.files.setdefault(Path(path), BytesIO()))


class Learner:
    """One rank of the learner.

    Args:
        config: dtype, optimizer, ZeRO stage and what else the section `learner` says.
        start: policy folder to begin from.
        steps: optimizer steps of the whole run, for the schedule.
        micro_batches: forward passes of this rank per optimizer step.
        rank, ranks, rendezvous: place in the process group, and the `tcp://host:port` where its ranks meet; one rank
            alone needs none.
        run: folder of the run, for the samples of a step that is refused.
        tokenizer: identity of the visual tokenizer, which saved policies remember.

    """

    def __init__(
        self,
        config: LearnerConfig,
        start: Path,
        steps: int,
        micro_batches: int,
        rank: int = 0,
        ranks: int = 1,
        rendezvous: str | None = None,
        run: Path | None = None,
        tokenizer: str | None = None,
    ):
        self.rank, self.ranks, self.micro_batches = rank, ranks, micro_batches
        self.run = run
        self.images_per_pass = config.micro_batch
        self.optimizer = config.optimizer
        self.step = 0
        self.grad_norm = self.learning_rate = 0.0  # of the last optimizer step
        device = default_device()
        if rendezvous is None:
            store = meeting_place("127.0.0.1")
            rendezvous = f"tcp://127.0.0.1:{store.port}"
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed insists on it; an actor sees its own GPU as number 0
        # Its shared-memory all-reduce for CPUs needs a compiler at run time and one host; gloo needs neither.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(
            "nccl" if device == "cuda" else "gloo",
            auto_mpi_discovery=False,
            init_method=rendezvous,
            rank=rank,
            world_size=ranks,
        )
        model, self.encode = load_policy(start, getattr(torch, config.dtype))
        self.layout = ImageLayout.of(model.config)
        if tokenizer:
            model.config.image_tokenizer = tokenizer
        self.size = ModelSize.of(model)
        # Known for bfloat16 only.
        in_table = device == "cuda" and config.dtype == "bfloat16"
        self.peak_flops = peak_flops(torch.cuda.get_device_name()) if in_table else None
        if config.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config.optimizer), lr=config.optimizer.learning_rate, betas=config.optimizer.betas
        )
        self.finite = torch.tensor(True, device=device)  # the gradients of a pass, on this rank
        for parameter in model.parameters():
            parameter.register_hook(self._watch)
        computation = Computation(model.to(device).train())
        self.engine, *_ = deepspeed.initialize(
            model=computation,
            optimizer=optimizer,
            lr_scheduler=schedule(optimizer, config.optimizer, steps),
            config={
                "train_micro_batch_size_per_gpu": 1,  # the loss is normalised here; DeepSpeed only counts passes
                "gradient_accumulation_steps": micro_batches,
                "gradient_clipping": config.optimizer.gradient_clip,
                "zero_optimization": {"stage": config.zero_stage},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
                **(IN_BFLOAT16 if config.dtype == "bfloat16" else {}),
            },
        )
        self.engine.checkpoint_engine = self.copies = HostCopies()
        self.model = model
        if config.zero_stage == 3:
            # The visual rows of the head are read outside lm_head's own forward.
            deepspeed.zero.register_external_parameter(computation, model.lm_head.weight)
        self.ema_decay = config.ema
        self.ema = self._start_ema()

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self.engine.device

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(policy, *args)`, inside DeepSpeed's forward pass. Every rank must call it."""
        return self.engine(function, *args)

    def backward(self, loss: torch.Tensor, evidence: Callable[[], Evidence]) -> None:
        """The backward pass, and with the last pass of a step the optimizer step.

        If one rank refuses, no rank takes the step: the others block in the next collective until the stage ends.

        Raises:
            UserError: the loss or a gradient is not finite; with what `evidence` returns.
        """
        if not loss.isfinite():
            raise refusal(self.run, self.step + 1, f"the loss {loss.item()}", evidence())
        self.finite.fill_(True)
        self.engine.backward(loss)
        if not self.finite:
            raise refusal(self.run, self.step + 1, "a gradient that is infinite or nan", evidence())
        last, sharded = self.engine.is_gradient_accumulation_boundary(), self.engine.zero_optimization_stage() > 0
        if last and not sharded:
            # DeepSpeed reports the norm of sharded gradients only, and of those refuses one that is not finite itself.
            self.grad_norm = float(nn.utils.get_total_norm([p.grad for p in self.model.parameters()]))
        finite = sharded or np.isfinite(self.grad_norm)
        if finite:
            self.learning_rate = self.engine.get_lr()[0]  # the step also sets that of the next one
            self.engine.step()  # updates the weights on the last pass of a batch only
        if last and not (finite and self.engine.was_step_applied()):
            raise refusal(self.run, self.step + 1, "the gradients' norm, summed over passes and ranks,", evidence())

    def _watch(self, gradient: torch.Tensor) -> None:
        """Sees a parameter's gradient of one pass whole, under every ZeRO stage; does not wait for the device."""
        # Extremes are nan where a value is; one pass over the values, where `isfinite` makes four.
        self.finite.logical_and_(torch.stack(gradient.aminmax()).isfinite().all())

    def finish_step(self) -> dict[str, float]:
        """Count the step; returns the gradients' norm and the learning rate that it was taken with."""
        self.step += 1
        if self.ema_decay is not None:
            with self._all_buckets() as buckets:
                if self.ema:
                    self.ema.update(buckets)
        grad_norm = self.engine.get_global_grad_norm() or self.grad_norm
        return {"grad_norm": float(grad_norm), "learning_rate": self.learning_rate}

    def _start_ema(self) -> Ema | None:
        """The average on rank 0, of the weights as they are; None on the others and where none is asked for."""
        if self.ema_decay is None:
            return None
        with self._all_buckets() as buckets:
            return Ema(self.ema_decay, buckets) if self.rank == 0 else None

    def weights(self) -> Weights | None:
        """The whole policy on rank 0, None on the others. Every rank must call it: ZeRO-3 gathers here."""
        tensors: dict[str, torch.Tensor] = {}
        sums: dict[str, str] = {}
        for bucket in self.weight_buckets():
            if self.rank == 0:
                sums |= checksum(bucket.items())
                tensors |= {name: tensor.to("cpu", copy=True) for name, tensor in bucket.items()}
        return Weights(self.step, tensors, sums) if self.rank == 0 else None

    def send_weights(self, group: WeightGroup | None) -> None:
        """Broadcast the whole policy from rank 0; the others have no group. Every rank must call it."""
        with self._all_buckets() as buckets:
            if group:
                group.send(buckets, self.step)

    def share_weights(self, show: Callable[[bytes], None]) -> dict[str, str]:
        """Call `show` with the handles to every bucket of the policy, see `shared`; it returns when it is done with it.

        Every rank must call it, each with an engine of its own. Returns the checksum.
        """
        sums: dict[str, str] = {}
        with self._all_buckets() as buckets:
            for bucket in buckets:
                copies, handles = shared(bucket)
                show(handles)
                sums |= checksum(copies.items())
        return sums

    @contextmanager
    def _all_buckets(self) -> Iterator[Iterator[dict[str, torch.Tensor]]]:
        """The buckets, of which those left over are gone through at the end: the other ranks gather all of them."""
        buckets = self.weight_buckets()
        try:
            yield buckets
        finally:
            for _ in buckets:
                pass

    def weight_buckets(self, limit: int = BUCKET_BYTES) -> Iterator[dict[str, torch.Tensor]]:
        """All weights, on this rank's device, a bucket of at most `limit` bytes at a time (or one larger tensor).

        ZeRO-3 gathers a bucket for as long as it is the current one, so every rank must go through all of them.
        """
        sharded = self.engine.zero_optimization_stage() == 3
        parameters = dict(self.model.named_parameters())
        sizes = {n: (p.ds_numel if sharded else p.numel()) * p.element_size() for n, p in parameters.items()}
        for names in in_buckets(sizes, limit):
            bucket = {name: parameters[name] for name in names}
            with deepspeed.zero.GatheredParameters(list(bucket.values()), enabled=sharded):
                yield {name: parameter.detach() for name, parameter in bucket.items()}

    @torch.no_grad()
    def draw(self, draw: Draw) -> list[Rollout]:
        """Draw images with the weights as they are, see draw_together. Every rank must call it."""
        self.model.eval()  # in training mode, activation checkpointing goes without the key-value cache
        drawn = draw_together(partial(self.engine, sample_codes), draw, self.encode, self.layout, self.step)
        self.model.train()
        return drawn

    def save(self, folder: Path, behind: Weights | None = None) -> Callable[[], None]:
        """Copy the state to host memory; every rank must call it.

        What it returns writes `folder/model` and, of the average, `folder/ema` (Hugging Face format) and
        `folder/learner` (DeepSpeed state), in any thread and while further steps are taken. The weights `behind` go to
        the policy folder `folder/behind`.
        """
        self.engine.save_checkpoint(str(folder / "learner"), tag="state", client_state={"learner_step": self.step})
        files, self.copies.files = self.copies.files, {}
        weights = self.weights()
        policies = {"model": weights.tensors} if weights else {}
        if self.ema:
            policies["ema"] = {name: tensor.clone() for name, tensor in self.ema.weights.items()}
        if behind:
            policies[BEHIND] = behind.tensors

        def write() -> None:
            for file, content in files.items():
                file.write_bytes(content.getbuffer())
            for name, tensors in policies.items():
                save_policy(folder / name, self.model, self.encode.tokenizer, tensors)

        return write

    def load(self, folder: Path) -> None:
        """Continue from a folder that was written so, with the learning rate and so on of the configuration.

        An average that the folder does not have begins with its weights.

        Raises UserError if the folder is of a policy of another size.
        """
        try:
            _, client_state = self.engine.load_checkpoint(str(folder / "learner"), tag="state")
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{folder}: not a checkpoint of a policy like `start`: {error}") from error
        self.step = client_state["learner_step"]
        self._set_optimizer()
        self.ema = self._start_ema()
        if self.ema and (folder / "ema").exists():
            average = read_weights(folder / "ema", self.step, "float32").tensors
            # What is read is mapped: the file could not be deleted on every storage, and the average changes in place.
            self.ema.weights = {name: tensor.clone() for name, tensor in average.items()}

    def _set_optimizer(self) -> None:
        """Give the optimizer the values of the configuration: DeepSpeed and the scheduler have restored older ones."""
        config, scheduler, optimizer = self.optimizer, self.engine.lr_scheduler, self.engine.optimizer
        scheduler.base_lrs = [config.learning_rate for _ in scheduler.base_lrs]
        rate = config.learning_rate * scheduler.lr_lambdas[0](scheduler.last_epoch)  # of the next step
        values = {"lr": rate, "initial_lr": config.learning_rate, "betas": config.betas}
        for group, weight_decay in zip(optimizer.param_groups, weight_decays(config), strict=True):
            group |= values | {"weight_decay": weight_decay}
        if hasattr(optimizer, "clip_grad"):  # the sharded ones and that of bfloat16 keep their own
            optimizer.clip_grad = config.gradient_clip
