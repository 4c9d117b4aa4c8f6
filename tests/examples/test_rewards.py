"""The rewards of examples/rewards, each against its model's own code, on random weights."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
)

from simplear_rl.config.rewards import PythonRewardConfig
from simplear_rl.policy.model import word_tokenizer
from simplear_rl.rewards.python import PythonReward
from simplear_rl.rewards.reward import UnscoredError
from simplear_rl.vision.vqa import PROMPT
from tests.visual_judge import WORDS, make_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "rewards"
PROMPTS = ["a red circle", "two blue squares and a cross"]


def example(name: str, cls: str, **arguments) -> PythonReward:
    return PythonReward(PythonRewardConfig(function=f"{EXAMPLES / name}.py:{cls}", arguments=arguments))


def pictures() -> list[np.ndarray]:
    """Of two sizes."""
    sizes = [(64, 64), (300, 240)]
    return [np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8) for i, size in enumerate(sizes)]


def score(reward: PythonReward, prompts=PROMPTS) -> list[float]:
    return [float(reward.score(image[None], [prompt])[0]) for image, prompt in zip(pictures(), prompts, strict=True)]


def random_weights(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Normal ones with a standard deviation of 0.2, each a function of its name."""
    seeded = {name: torch.Generator().manual_seed(zlib.crc32(name.encode())) for name in shapes}
    return {name: torch.randn(shape, generator=seeded[name]) * 0.2 for name, shape in shapes.items()}


def test_every_example_is_a_page():
    for file in EXAMPLES.glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) < 80, file


@pytest.fixture(scope="module")
def pickscore(tmp_path_factory):
    """PickScore's network in small."""
    folder = tmp_path_factory.mktemp("pickscore")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": 40, "max_position_embeddings": 77, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=tower | words, vision_config=tower | sizes, projection_dim=16))
    model.save_pretrained(folder)
    tokenizer = word_tokenizer(["a", "red", "circle", "two", "blue", "squares", "and", "cross"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token=tokenizer.pad_token, model_max_length=77
    )
    resized = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(resized, tokenizer).save_pretrained(folder)
    return folder


def test_pickscore_is_that_of_its_model_card(pickscore):
    model, processor = CLIPModel.from_pretrained(pickscore).eval(), AutoProcessor.from_pretrained(pickscore)
    expected = []
    for image, prompt in zip(pictures(), PROMPTS, strict=True):
        settings = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
        with torch.no_grad():
            image_embs = model.get_image_features(**processor(images=image, return_tensors="pt")).pooler_output
            text_embs = model.get_text_features(**processor(text=prompt, **settings)).pooler_output
        image_embs, text_embs = (part / part.norm(dim=-1, keepdim=True) for part in (image_embs, text_embs))
        expected.append((model.logit_scale.exp() * (text_embs @ image_embs.T)[0]).item())
    reward = example("pickscore", "PickScore", model=str(pickscore), processor=str(pickscore), batch_size=2)
    assert score(reward) == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 0.01
    several = reward.score(np.stack([pictures()[0]] * 3), [PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    assert several[0] == pytest.approx(several[2], abs=1e-5) == pytest.approx(expected[0], abs=1e-5)
    with pytest.raises(UnscoredError, match="is longer than the 77 tokens that PickScore reads"):
        reward.score(pictures()[0][None], ["a " * 80])


def test_the_judge_says_how_probable_yes_is(tmp_path):
    folder = make_model(tmp_path, [*WORDS, "Does", "this", "show", '"', '"?'])
    reward = example("vision_language_judge", "Judge", model=str(folder), dtype="float32")
    image = pictures()[0][:32, :32]
    judge = reward.function.judge
    for columns, question in ({}, 'Does this image show "a red circle"?'), ({"question": "is there a circle"},) * 2:
        question = columns.get("question", question)
        text = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{PROMPT.format(question=question)}"
        text = f"{text}<|im_end|>\n<|im_start|>assistant\n"
        inputs = judge.processor(text=text, images=Image.fromarray(image), return_tensors="pt")
        with torch.no_grad():
            probabilities = judge.model(**inputs).logits[0, -1].softmax(-1)
        yes, no = (probabilities[judge.processor.tokenizer.encode(word)].max() for word in ("yes Yes", "no No"))
        found = reward.score(image[None], ["a red circle"], [columns])
        assert found[0] == pytest.approx(float(yes / (yes + no)), abs=1e-5)


def written(text: str) -> np.ndarray:
    image = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(image).text((16, 24), text, fill="black", font=ImageFont.load_default(size=40))
    return np.asarray(image)


def test_text_is_read_with_real_weights():
    pytest.importorskip("rapidocr")
    reward = example("ocr", "Ocr")
    images = np.stack([written("Open Late"), written("Open Date"), written("")])
    scores = reward.score(images, ['a sign that says "Open Late"'] * 3)
    assert scores.tolist() == [1, pytest.approx(1 - 1 / 8), 0]
    assert np.isnan(reward.score(images[:1], ["a sign"])[0])
    assert reward.score(images[:1], ["a sign that says “open LATE”"])[0] == 1


def test_edits_are_levenshteins():
    pytest.importorskip("rapidocr")
    edits = example("ocr", "Ocr").target.score.__globals__["edits"]
    pairs = {("kitten", "sitting"): 3, ("", "abc"): 3, ("abc", ""): 3, ("flaw", "lawn"): 2, ("a", "a"): 0}
    assert {pair: edits(*pair) for pair in pairs} == pairs
