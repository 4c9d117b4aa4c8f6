"""Admission into vLLM: an image starts only as a whole, and once it has started nothing interrupts it.

A guided image is two requests, one per context, which receive the same token at every step. vLLM's own scheduler would
start one context without the other, split a prompt over steps, or preempt half a pair when the key-value cache is
full, and the image would silently be another one. Here

- both contexts of a pair are admitted in the same step, when both have arrived;
- there are slots for all requests that run, and tokens in this step's budget for all their prompts;
- the key-value cache has room for every admitted request at its full length.

So by induction nothing is ever split or preempted, which `schedule` checks. Images without guidance pass the same gate.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus


def pair_of(request: Request) -> str | None:
    """The pair that a request belongs to; both its contexts name the same one in `SamplingParams.extra_args`."""
    return request.sampling_params.extra_args.get("pair")


class PairScheduler(Scheduler):
    """vLLM's scheduler behind a queue of images: tuples of one request or two."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lone: dict[str, Request] = {}  # contexts whose other half has not arrived, by pair
        self.queue: deque[tuple[Request, ...]] = deque()
        watermark = self.kv_cache_manager.watermark_blocks
        self.capacity = self.kv_cache_config.num_blocks - 1 - watermark  # vLLM keeps one block for itself

    def blocks(self, prompt_tokens: int, new_tokens: int) -> int:
        """Blocks of the key-value cache that a request fills in the end."""
        return -(-(prompt_tokens + new_tokens) // self.block_size)

    def add_request(self, request: Request) -> None:
        """Queue the image when it is complete. Raises ValueError if it can never run."""
        pair = pair_of(request)
        if pair is None:
            image: tuple[Request, ...] = (request,)
        elif pair in self.lone:
            image = (self.lone.pop(pair), request)
        else:
            self.lone[pair] = request
            return
        if not self._fits(image, [], 0):
            raise ValueError(
                f"image {request.request_id} never fits: {len(image)} contexts, prompts of "
                f"{[r.num_prompt_tokens for r in image]} tokens, {self.capacity} blocks"
            )
        self.queue.append(image)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Admit the images that fit, in the order of their arrival, and let vLLM schedule the step."""
        unfinished, tokens = list(self.requests.values()), len(self.running)
        while self.queue and self._fits(self.queue[0], unfinished, tokens):
            for request in self.queue.popleft():
                super().add_request(request)
                unfinished.append(request)
                tokens += request.num_prompt_tokens
        due = {r.request_id for r in unfinished if r.num_output_tokens + r.num_output_placeholders < r.max_tokens}
        output = super().schedule(throttle_prefills)
        whole = output.num_scheduled_tokens.keys() == due
        if not whole or output.preempted_req_ids or any(request.is_prefill_chunk for request in self.running):
            raise RuntimeError("vLLM delayed, split or preempted a request that was admitted as fitting")
        return output

    def _fits(self, image: tuple[Request, ...], unfinished: list[Request], tokens: int) -> bool:
        together = [*unfinished, *image]
        return (
            len(together) <= self.max_num_running_reqs
            and tokens + sum(request.num_prompt_tokens for request in image) <= self.max_num_scheduled_tokens
            and sum(self.blocks(r.num_prompt_tokens, r.max_tokens) for r in together) <= self.capacity
        )

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        """Abort requests; the other context of a pair goes with the one that is named."""
        queued = [*self.lone.values(), *(request for image in self.queue for request in image)]
        known = {request.request_id: request for request in [*queued, *self.requests.values()]}
        named = known if request_ids is None else {request_ids} if isinstance(request_ids, str) else set(request_ids)
        pairs = {pair_of(known[name]) for name in named if name in known} - {None}
        gone = {name for name, request in known.items() if name in named or pair_of(request) in pairs}
        self.lone = {pair: request for pair, request in self.lone.items() if request.request_id not in gone}
        self.queue = deque(image for image in self.queue if image[0].request_id not in gone)
        never_ran = [request for request in queued if request.request_id in gone]
        for request in never_ran:
            request.status = finished_status
        return never_ran + super().finish_requests(gone, finished_status)

    def get_request_counts(self) -> tuple[int, int]:
        """Running and waiting requests; those of the queue wait."""
        running, waiting = super().get_request_counts()
        return running, waiting + sum(map(len, self.queue))


class AsyncPairScheduler(PairScheduler, AsyncScheduler):
    """The same while a step is scheduled before the one before it has ended, as vLLM does on GPUs."""
