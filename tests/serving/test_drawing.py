"""Images that many users ask for at any time: the same as `generate` draws, in turns, and no longer than wanted."""

import asyncio
import dataclasses

import numpy as np
import pytest
import torch

from simplear_rl.policy.model import load_policy
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling
from simplear_rl.rollout.engine import build_engine
from simplear_rl.serving.batches import ImageRequest, build_batch
from simplear_rl.serving.drawing import Drawing, LateError
from simplear_rl.serving.waiting import Waiting
from simplear_rl.weights.snapshot import Weights, checksum

PROMPTS = ["a red circle", "two blue square and a cross", "three cross"]
SAMPLINGS = [Sampling(), Sampling(guidance_scale=3.0), Sampling(temperature=0.7, top_k=20)]
TOKENS = 16


@pytest.fixture(scope="module", params=["vllm", "transformers"])
def drawing(request, policy, engine_config):
    return Drawing(build_batch(policy, engine_config.model_copy(update={"type": request.param})))


@pytest.fixture(scope="module")
def expected(policy, engine_config):
    """What the engine transformers draws, by (prompt, sample, sampling), and the requests for it."""
    engine = build_engine(policy, engine_config.model_copy(update={"type": "transformers"}))
    images = {}
    for sampling in SAMPLINGS:
        draw = Draw([Prompt(i, text) for i, text in enumerate(PROMPTS)], 4, 7, 0, sampling)
        for rollout in engine.generate(draw):
            for k, codes in enumerate(rollout.codes):
                seed = (7, 0, rollout.prompt.index, k)
                request = ImageRequest(rollout.prompt_ids, rollout.unconditional_ids, sampling, seed)
                images[rollout.prompt.index, k, sampling] = request, codes
    return images


async def whole(drawing, request, user="one", seconds=60.0, stops=()):
    return [progress async for progress in drawing.draw(request, user, seconds, stops)]


async def settled(drawing):
    """Wait until nothing runs and nothing waits."""
    while drawing.counts() != (0, 0):
        await asyncio.sleep(0.01)


def test_images_are_those_of_generate_alone_and_among_others(drawing, expected):
    async def main():
        for key in list(expected)[::7]:
            alone = await whole(drawing, expected[key][0])
            assert np.array_equal(alone[-1].codes, expected[key][1])
        tasks = {}
        for number, (key, (request, _)) in enumerate(expected.items()):
            tasks[key] = asyncio.create_task(whole(drawing, request, user=str(number % 3), stops=(4, 8)))
            await asyncio.sleep(0.003)  # while the ones before are drawn
        for key, task in tasks.items():
            *parts, image = await task
            assert np.array_equal(image.codes, expected[key][1])
            assert [len(part.codes) for part in parts] == [4, 8]
            assert all(np.array_equal(part.codes, image.codes[: len(part.codes)]) for part in parts)
        await settled(drawing)

    asyncio.run(main())


def test_what_nobody_waits_for_is_drawn_no_further(drawing, expected):
    request, codes = expected[0, 0, SAMPLINGS[1]]
    steps = []

    async def main():
        abandoned = [asyncio.create_task(whole(drawing, request)) for _ in range(40)]
        while drawing.counts()[0] < 4:
            await asyncio.sleep(0)
        for task in abandoned:
            task.cancel()
        await asyncio.gather(*abandoned, return_exceptions=True)
        image = await whole(drawing, request)
        assert np.array_equal(image[-1].codes, codes)
        await settled(drawing)

    step = drawing.batch.step
    drawing.batch.step = lambda: steps.append(1) or step()
    try:
        asyncio.run(main())
    finally:
        drawing.batch.step = step
    assert len(steps) <= 3 * TOKENS  # forty of them, four at a time, take ten times TOKENS


def test_an_image_that_is_late_is_an_error_and_leaves_the_others(drawing, expected):
    request, codes = expected[0, 0, SAMPLINGS[0]]

    async def main():
        late = [asyncio.create_task(whole(drawing, request, seconds=-1)) for _ in range(3)]
        image = await whole(drawing, request)
        assert np.array_equal(image[-1].codes, codes)
        assert all(isinstance(e, LateError) for e in await asyncio.gather(*late, return_exceptions=True))
        await settled(drawing)

    asyncio.run(main())


def test_images_finish_with_the_weights_that_they_began_with(drawing, expected, policy):
    tensors = {name: p.detach() for name, p in load_policy(policy)[0].named_parameters()}
    old = Weights(0, tensors, checksum(tensors.items()))
    generator = torch.Generator().manual_seed(1)
    other = {name: t + 0.05 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
    new = dataclasses.replace(old, version=3, tensors=other, checksum=checksum(other.items()))
    request, codes = expected[1, 2, SAMPLINGS[1]]

    async def main():
        images = [asyncio.create_task(whole(drawing, request)) for _ in range(9)]
        while not drawing.counts()[0]:
            await asyncio.sleep(0)
        assert await asyncio.wrap_future(drawing.load_weights(new)) == 3
        versions = [progress[-1].weight_version for progress in await asyncio.gather(*images)]
        assert set(versions) == {0, 3} and versions == sorted(versions)
        for task, version in zip(images, versions, strict=True):
            assert np.array_equal(task.result()[-1].codes, codes) == (version == 0)
        assert await asyncio.wrap_future(drawing.load_weights(old)) == 0
        assert np.array_equal((await whole(drawing, request))[-1].codes, codes)

    asyncio.run(main())


def test_users_take_turns():
    waiting = Waiting[str]()
    for number in range(6):
        waiting.put("many", f"many {number}")
    order, running = [], []
    for number in range(2):
        waiting.put("few", f"few {number}")
    while turn := waiting.next():
        order.append(waiting.start(turn[0]))
        running.append(turn[0])
        if len(running) == 4:
            waiting.finish(running.pop(0))
    assert order[:4] == ["many 0", "few 0", "many 1", "few 1"]
    assert order[4:] == [f"many {n}" for n in range(2, 6)] and len(waiting) == 0


def test_a_key_has_no_more_turns_by_naming_users():
    waiting = Waiting[str]()
    for number in range(3):
        waiting.put(f"a/{number}", "a")
        waiting.put("b/", "b")
    assert [waiting.start(waiting.next()[0]) for _ in range(6)] == list("ababab")
    waiting.put("a/3", "a")
    waiting.put("b/", "b")
    waiting.finish("b/")
    assert waiting.next() == ("b/", "b")


def test_a_user_who_comes_late_is_next():
    waiting = Waiting[int]()
    for number in range(8):
        waiting.put("many", number)
    for _ in range(4):
        waiting.start("many")
    waiting.put("late", 8)
    assert waiting.next() == ("late", 8)
    waiting.remove("late", 8)
    assert waiting.next() == ("many", 4)
