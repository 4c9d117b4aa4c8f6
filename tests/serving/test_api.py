"""The API as OpenAI's unchanged client sees it, and what it answers to requests that are wrong."""

import asyncio
import base64
import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent
from PIL import Image

from simplear_rl.config.serving import LimitsConfig
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling
from simplear_rl.serving.files import ExpiringFiles
from simplear_rl.tokenizers.cosmos import CosmosTokenizer
from tests.serving.conftest import client, http, run

PROMPT = "a red circle"
GENERATE = "/v1/images/generations"


def pixels(b64_json):
    return np.asarray(Image.open(BytesIO(base64.b64decode(b64_json))))


@pytest.fixture(scope="module")
def expected(world, artist):
    """What `generate` draws for these prompts with seed 5 and guidance 2, by prompt and sample: pixels."""
    draw = Draw([Prompt(0, PROMPT), Prompt(1, "two crosses")], 2, 5, 0, Sampling(guidance_scale=2.0))
    layout, tokenizer = artist.pictures.layout, CosmosTokenizer(world / "tokenizer")
    groups = artist.drawing.batch.engine.generate(draw)
    codes = [codes for group in groups for codes in group.codes]
    return [tokenizer.decode(one[None], layout.rows, layout.columns)[0] for one in codes]


GUIDED = {"seed": 5, "guidance_scale": 2.0}


def test_pictures_are_those_of_generate(make_api, expected):
    async def main():
        answer = await client(make_api()).images.generate(prompt=PROMPT, n=2, size="64x64", extra_body=GUIDED)
        several = await client(make_api()).images.generate(prompt=[PROMPT, "two crosses"], n=2, extra_body=GUIDED)
        return answer, several

    answer, several = run(main())
    assert [image.seed for image in answer.data] == [5, 5]
    assert all((pixels(image.b64_json) == e).all() for image, e in zip(answer.data, expected[:2], strict=True))
    assert all((pixels(image.b64_json) == e).all() for image, e in zip(several.data, expected, strict=True))
    assert (answer.size, answer.output_format, answer.usage.output_tokens) == ("64x64", "png", 128)


def test_a_seed_that_was_not_given_is_told(make_api):
    async def main():
        images = client(make_api()).images
        first = await images.generate(prompt=PROMPT, extra_body={"return_codes": True})
        again = await images.generate(prompt=PROMPT, extra_body={"return_codes": True, "seed": first.data[0].seed})
        return first.data[0], again.data[0], (await images.generate(prompt=PROMPT)).data[0]

    first, again, other = run(main())
    assert first.codes == again.codes and len(first.codes) == 64 and first.b64_json == again.b64_json
    assert other.seed != first.seed


def test_a_stream_shows_the_rows_that_are_there(make_api, expected):
    async def main():
        stream = await client(make_api()).images.generate(
            prompt=PROMPT, n=2, stream=True, partial_images=3, extra_body=GUIDED
        )
        return [event async for event in stream]

    events = run(main())
    for index in range(2):
        *partial, whole = [event for event in events if event.index == index]
        assert isinstance(whole, ImageGenCompletedEvent) and (pixels(whole.b64_json) == expected[index]).all()
        assert all(isinstance(event, ImageGenPartialImageEvent) for event in partial)
        assert [event.partial_image_index for event in partial] == [0, 1, 2]
        for event, rows in zip(partial, (8, 24, 40), strict=True):  # of pixels: one, three and five rows of codes
            picture = pixels(event.b64_json)
            assert (picture[rows:] == 238).all()
            assert (np.abs(picture.astype(int) - expected[index])[: rows - 4] < 40).mean() > 0.9  # its edge differs


@pytest.mark.parametrize(("name", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_pictures_by_url_in_every_format(make_api, name, kind, expected):
    async def main():
        api = make_api()
        answer = await client(api).images.generate(
            prompt=PROMPT, response_format="url", output_format=name, extra_body=GUIDED
        )
        found = await http(api).get(answer.data[0].url)
        other = [await http(api).get(f"/files/{path}") for path in ("x.png", "..%2f..%2fetc%2fpasswd", "%2e%2e/x")]
        api.files.kept = {name: (0.0, size) for name, (_, size) in api.files.kept.items()}
        return found, other, await http(api).get(answer.data[0].url)

    found, other, late = run(main())
    image = Image.open(BytesIO(found.content))
    assert (image.format, found.headers["content-type"]) == (kind, f"image/{name}")
    assert np.abs(np.asarray(image).astype(int) - expected[0]).mean() < 15
    assert {answer.status_code for answer in (*other, late)} == {404}


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"size": "1024x1024"}, openai.BadRequestError, "size '1024x1024': this policy draws 64x64"),
        ({"prompt": "circle " * 40}, openai.BadRequestError, "45 tokens, there is room for 32"),
        ({"prompt": "  "}, openai.BadRequestError, "prompt: empty prompt"),
        ({"prompt": "a\0b"}, openai.BadRequestError, r"control characters \x00"),
        ({"prompt": []}, openai.BadRequestError, "0 prompts times n=1: expected 1 to 16 images"),
        ({"n": 17}, openai.BadRequestError, "1 prompts times n=17"),
        ({"n": 0}, openai.UnprocessableEntityError, "n: Input should be greater than or equal to 1"),
        ({"extra_body": {"sed": 1}}, openai.UnprocessableEntityError, "sed: Extra inputs are not permitted"),
        ({"extra_body": {"temperature": 1e-9}}, openai.UnprocessableEntityError, "expected 0 (greedy) or at least"),
        ({"extra_body": {"negative_prompt": "x"}}, openai.BadRequestError, "has no effect without guidance"),
        ({"partial_images": 2}, openai.BadRequestError, "only a stream has them"),
        ({"stream": True, "response_format": "url"}, openai.BadRequestError, "response_format must be b64_json"),
        ({"model": "dall-e-3"}, openai.NotFoundError, "model 'dall-e-3': this server has 'simplear'"),
    ],
)
def test_what_is_wrong_is_said(make_api, wrong, kind, message):
    with pytest.raises(kind) as caught:
        run(client(make_api()).images.generate(**{"prompt": PROMPT} | wrong))
    assert message in caught.value.body["message"]
    param = next(iter(wrong.get("extra_body", wrong)))
    assert caught.value.body["param"] in (param, "n", "response_format")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"\xff", 400),
        (b"[1]", 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"\\ud800": 1}', 400),
        (b'{"prompt": "x", "guidance_scale": NaN}', 422),
        (b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}", 400),
        (b"[" * 50000, 400),
        (b'{"prompt": "' + b"x" * 70000 + b'"}', 413),
    ],
)
def test_bodies_that_are_none(make_api, content, status):
    answer = run(http(make_api()).post(GENERATE, content=content, headers={"Content-Type": "application/json"}))
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_form_of_another_site_is_refused(make_api):
    """Without a preflight a browser sends no JSON, and CORS is off."""

    async def main():
        body, plain = json.dumps({"prompt": PROMPT}), {"Content-Type": "text/plain", "Origin": "http://evil"}
        posted = await http(make_api()).post(GENERATE, content=body, headers=plain)
        asks = {"Origin": "http://other", "Access-Control-Request-Method": "POST"}
        off = await http(make_api()).options(GENERATE, headers=asks)
        on = await http(make_api(cors_origins=["http://other"])).options(GENERATE, headers=asks)
        return posted, off, on

    posted, off, on = run(main())
    assert posted.status_code == 400
    assert "access-control-allow-origin" not in off.headers and off.status_code == 405
    assert on.headers["access-control-allow-origin"] == "http://other"


def test_a_site_whose_name_means_this_machine_is_refused(make_api):
    """DNS rebinding: its pages may read what they ask for, but they ask under its name. With keys they have none."""

    async def main():
        def ask(api, host):
            return http(api).get("/v1/models", headers={"Host": host, "Authorization": "Bearer secret"})

        names = ["evil.example:8000", "localhost:8000", "127.0.0.1", "[::1]:8000"]
        free = [(await ask(make_api(), name)).status_code for name in names]
        return free, (await ask(make_api("secret"), "proxy.example")).status_code

    assert run(main()) == ([400, 200, 200, 200], 200)


def test_bodies_that_do_not_end_count_and_are_given_up(make_api, monkeypatch):
    monkeypatch.setattr("simplear_rl.serving.api.BODY_SECONDS", 0.3)

    async def main():  # by hand: httpx shows an application a body only when it has all of it
        api = make_api(limits={"requests_per_key": 1})
        sent, begun = [], asyncio.Event()

        async def receive():
            if begun.is_set():
                await asyncio.sleep(3600)
            begun.set()
            return {"type": "http.request", "body": b"{", "more_body": True}

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": GENERATE, "headers": headers, "query_string": b""}
        task = asyncio.create_task(api.application()(scope, receive, send))
        await begun.wait()
        with pytest.raises(openai.RateLimitError, match="1 requests open"):
            await client(api).images.generate(prompt=PROMPT)
        await task
        return sent[0]["status"], len(api.admission.requests)

    assert run(main()) == (408, 0)


def test_files_go_in_time_and_the_oldest_when_there_are_too_many():
    async def main():
        files = ExpiringFiles(0.2, most_bytes=10)
        names = [files.add(content, "png") for content in (b"first", b"second", b"3")]
        found = [files.get(name) for name in names]
        Path(files.folder.name, names[1]).unlink()
        gone = files.get(names[1])
        shutil.rmtree(files.folder.name)  # by a cleaner of temporary folders
        again = files.get(files.add(b"4", "png"))
        await asyncio.sleep(0.3)
        left = list(Path(files.folder.name).iterdir())
        files.close()
        return found, gone, again, left, Path(files.folder.name).exists()

    assert run(main()) == ([None, b"second", b"3"], None, b"4", [], False)


def test_a_picture_that_never_comes_is_late_and_a_fault_is_counted(make_api, artist, monkeypatch):
    async def never(codes, output_format):
        await asyncio.sleep(3600)

    async def fault(codes, output_format):
        raise RuntimeError("a fault")

    async def main():
        api = make_api(limits={"deadline_seconds": 3})
        monkeypatch.setattr(artist, "picture", never)
        with pytest.raises(openai.InternalServerError, match="not drawn within") as late:
            await client(api).images.generate(prompt=PROMPT)
        monkeypatch.setattr(artist, "picture", fault)
        with pytest.raises(RuntimeError, match="a fault"):  # which the server's own handler answers with 500
            await client(api).images.generate(prompt=PROMPT)
        return late.value.status_code, (await http(api).get("/metrics")).text, api.admission.images

    status, metrics, left = run(main())
    assert status == 503 and left == 0
    assert (
        'route="/v1/images/generations",status="500"} 1.0' in metrics and "simplear_failed_images_total 1.0" in metrics
    )


def test_keys(make_api):
    async def main():
        api = make_api("secret", "other")
        for key in "secret", "other":
            await client(api, key).models.list()
        for key in "wrong", "secre", "secret,other", "":
            with pytest.raises(openai.AuthenticationError) as caught:
                await client(api, key or "x").images.generate(prompt=PROMPT)
            assert caught.value.code == "invalid_api_key"
        paths = ["/v1/models", "/metrics", "/health", "/", "/nowhere"]
        return [(await http(api).get(path)).status_code for path in paths]

    assert run(main()) == [401, 401, 200, 200, 404]


def test_models_and_metrics(make_api):
    async def main():
        api = make_api()
        models = await client(api).models.list()
        one = await client(api).models.retrieve("simplear")
        with pytest.raises(openai.NotFoundError):
            await client(api).models.retrieve("gpt")
        await client(api).images.generate(prompt=PROMPT)
        return models.data[0], one, (await http(api).get("/metrics")).text

    listed, one, metrics = run(main())
    assert listed == one and (one.id, one.size) == ("simplear", "64x64")
    assert 'simplear_requests_total{route="/v1/images/generations",status="200"} 1.0' in metrics
    assert "simplear_image_seconds_count 1.0" in metrics and "simplear_queued_images 0.0" in metrics


def test_too_many_are_told_when_to_come_back(make_api):
    async def main():
        api = make_api("a", "b", limits={"queued_images": 6, "images_per_request": 4, "requests_per_key": 3})
        limits = api.admission.limits
        first = [asyncio.create_task(client(api, "a").images.generate(prompt=PROMPT, n=2)) for _ in range(2)]
        while len(api.admission.requests) == 0 or api.admission.images < 4:
            await asyncio.sleep(0.001)
        refused = []
        for key, n, requests in ("a", 1, 2), ("a", 1, 3), ("b", 3, 3):
            api.admission.limits = limits.model_copy(update={"requests_per_key": requests})
            with pytest.raises(openai.RateLimitError) as caught:
                await client(api, key).images.generate(prompt=PROMPT, n=n)
            refused.append(caught.value)
        second = await client(api, "b").images.generate(prompt=PROMPT, n=2)
        await asyncio.gather(*first, return_exceptions=True)
        later = await client(api, "a").images.generate(prompt=PROMPT, n=3)
        return refused, second, later, api.admission

    refused, second, later, admission = run(main())
    assert [error.body["message"].split(":")[0] for error in refused] == [
        "this key has 2 requests open",
        "4 images of this key wait or are drawn",
        "4 images wait or are drawn",
    ]
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    assert (len(second.data), len(later.data), admission.images, len(admission.requests)) == (2, 3, 0, 0)


def test_503_while_loading_and_for_what_is_late(make_api, artist):
    async def main():
        artist.there = False
        try:
            with pytest.raises(openai.InternalServerError) as loading:
                await client(make_api()).images.generate(prompt=PROMPT)
            health = await http(make_api()).get("/health")
        finally:
            artist.there = True
        api = make_api(limits={"deadline_seconds": 1e-6})
        with pytest.raises(openai.InternalServerError) as late:
            await client(api).images.generate(prompt=PROMPT, n=2)
        with pytest.raises(openai.APIError, match="not drawn within"):
            async for _ in await client(api).images.generate(prompt=PROMPT, stream=True):
                pass
        return loading.value, health, late.value, api.admission.images

    loading, health, late, left = run(main())
    assert (loading.status_code, health.status_code, late.status_code) == (503, 503, 503)
    assert loading.response.headers["retry-after"] == "5" and left == 0


def test_prompts_are_not_in_the_log(make_api, caplog):
    caplog.set_level("INFO", "simplear.serve")
    run(client(make_api()).images.generate(prompt=PROMPT))
    assert "1 images" in caplog.text and "red" not in caplog.text
    run(client(make_api(log_prompts=True)).images.generate(prompt=PROMPT))
    assert "red" in caplog.text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
FIELDS = ["model", "n", "size", "output_format", "user", "seed", "temperature", "top_k", "top_p", "guidance_scale"]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],  # of a busy machine
)
@given(st.dictionaries(st.sampled_from(["prompt", *FIELDS]), VALUES, max_size=4))
def test_no_body_is_answered_with_500(make_api, values):
    content = json.dumps(values).encode()
    answer = run(http(make_api()).post(GENERATE, content=content, headers={"Content-Type": "application/json"}))
    assert answer.status_code in (200, 400, 404, 422), answer.text


def test_limits_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match=r"images_per_request \(16\): expected at most queued_images \(8\)"):
        LimitsConfig(queued_images=8)
