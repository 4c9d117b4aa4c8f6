"""The rewards of examples/rewards, each against its model's own code, on random weights."""

import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoProcessor,
    BlipTextConfig,
    BlipTextModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLModel,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from simplear_rl.config.rewards import PythonRewardConfig
from simplear_rl.policy.model import word_tokenizer
from simplear_rl.rewards.python import PythonReward
from simplear_rl.rewards.reward import UnscoredError
from simplear_rl.vision.vqa import PROMPT
from tests.visual_judge import SPECIAL, TEMPLATE, WORDS, make_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "rewards"
IMAGE_REWARD = [-9.955300331, -9.791611671]
HPSV3 = [1.119836092, 1.114309311]
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


def bert_tokenizer(folder: Path) -> Path:
    """A tokenizer of words in the form of BERT's."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["a", "red", "circle", "two", "blue", "squares", "and", "cross"],
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
    return folder


def image_reward_weights() -> dict[str, torch.Tensor]:
    """ImageReward in small, with the names of the published file."""
    block = {"norm1.weight": (64,), "norm1.bias": (64,), "norm2.weight": (64,), "norm2.bias": (64,)}
    block |= {
        "attn.qkv.weight": (192, 64),
        "attn.qkv.bias": (192,),
        "attn.proj.weight": (64, 64),
        "attn.proj.bias": (64,),
    }
    block |= {"mlp.fc1.weight": (128, 64), "mlp.fc1.bias": (128,), "mlp.fc2.weight": (64, 128), "mlp.fc2.bias": (64,)}
    vision = {"cls_token": (1, 1, 64), "pos_embed": (1, 197, 64), "norm.weight": (64,), "norm.bias": (64,)}
    vision |= {"patch_embed.proj.weight": (64, 3, 16, 16), "patch_embed.proj.bias": (64,)}
    vision |= {f"blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    sizes = {"vocab_size": 15, "hidden_size": 64, "encoder_hidden_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 1, "intermediate_size": 96, "max_position_embeddings": 40}
    text = BlipTextModel(BlipTextConfig(**sizes), add_pooling_layer=False).state_dict()
    widths = [64, 1024, 128, 64, 16, 1]
    head = {f"{i}.weight": (b, a) for i, a, b in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False)}
    head |= {f"{i}.bias": (b,) for i, b in zip((0, 2, 4, 6, 7), widths[1:], strict=True)}
    shapes = {f"blip.visual_encoder.{name}": shape for name, shape in vision.items()}
    shapes |= {f"blip.text_encoder.{name}": value.shape for name, value in text.items() if value.is_floating_point()}
    return random_weights(shapes | {f"mlp.layers.{name}": shape for name, shape in head.items()})


def test_image_reward_is_that_of_its_package(tmp_path):
    """The numbers are those of image-reward 1.5 with Transformers 4.46."""
    torch.save(image_reward_weights(), tmp_path / "ImageReward.pt")
    tokenizer = bert_tokenizer(tmp_path / "tokenizer")
    reward = example("image_reward", "ImageReward", weights=str(tmp_path / "ImageReward.pt"), tokenizer=str(tokenizer))
    assert score(reward) == pytest.approx(IMAGE_REWARD, rel=1e-4)
    with pytest.raises(UnscoredError, match="is longer than the 35 tokens that ImageReward reads"):
        reward.score(pictures()[0][None], ["a " * 40])


def hpsv3_model(folder: Path) -> tuple[Path, Path]:
    """HPSv3 in small: a folder with configuration and processor, and a file with the names of the published one."""
    words = ["a", "red", "circle", "two", "blue", "squares", "and", "cross", "image", "prompt", "user", "the"]
    vocabulary = {word: i for i, word in enumerate(["<|unk|>", "<|pad|>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<|unk|>", pad_token="<|pad|>")
    tokenizer.add_tokens([*SPECIAL, "<|endoftext|>"], special_tokens=True)
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=TEMPLATE)
    processor.save_pretrained(folder)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 32},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    config.save_pretrained(folder)
    shapes = {
        name.replace("language_model.", "model."): value.shape
        for name, value in Qwen2VLModel(config).state_dict().items()
    }
    for i, (wide, out) in zip((0, 3, 5), ((32, 1024), (1024, 16), (16, 2)), strict=True):
        shapes |= {f"rm_head.{i}.weight": (out, wide), f"rm_head.{i}.bias": (out,)}
    save_file(random_weights(shapes), folder / "HPSv3.safetensors")
    return folder, folder / "HPSv3.safetensors"


@pytest.mark.skipif(find_spec("hpsv3") is None, reason="pip install --no-deps hpsv3")
def test_hpsv3_is_that_of_its_package(tmp_path):
    """The numbers are those of hpsv3 1.0.0 with Transformers 4.46."""
    folder, weights = hpsv3_model(tmp_path)
    reward = example("hpsv3", "HPSv3", weights=str(weights), model=str(folder), dtype="float32")
    assert score(reward) == pytest.approx(HPSV3, rel=1e-4)
