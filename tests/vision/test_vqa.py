"""The visual judge on a tiny Qwen2.5-VL with random weights."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from simplear_rl.errors import UserError
from simplear_rl.vision.vqa import DEFAULT_MODEL, PROMPT, MplugJudge, TransformersJudge
from tests.visual_judge import WORDS, make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def questions():
    random = np.random.default_rng(0)
    sizes = [(16, 16), (24, 16), (32, 32), (16, 16)] * 4
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    texts = ["is there a red circle", "is there a circle", "is there a red circle and a blue square and a circle", "a"]
    return images, [texts[i % 3] for i in range(len(images))]


def test_answers_do_not_depend_on_batches_or_order(folder, questions):
    images, texts = questions
    one, many = (TransformersJudge(folder, batch_size=size, dtype="float32") for size in (1, 5))
    margins = one.margins(images, texts)
    np.testing.assert_allclose(many.margins(images, texts), margins, atol=1e-4)
    order = np.random.default_rng(1).permutation(len(images))
    shuffled = many.answer([images[i] for i in order], [texts[i] for i in order])
    answers = one.answer(images, texts)
    assert shuffled == [answers[i] for i in order]
    assert set(answers) == {"yes", "no"}, "all the same: the test would not see a mix-up"
    assert len(np.unique(margins.round(3))) > len(images) / 2
    assert answers == ["yes" if margin > 0 else "no" for margin in margins]


def test_answers_depend_on_image_and_question(folder, questions):
    (image, other, *_), _ = questions
    judge = TransformersJudge(folder, dtype="float32")
    a, b, c = judge.margins([image, other, image], ["is there a circle"] * 2 + ["is there a red circle"])
    assert abs(a - b) > 1e-3
    assert abs(a - c) > 1e-3
    assert judge.margins([Image.fromarray(image)], ["is there a circle"]) == pytest.approx(a, abs=1e-4)


def test_answer_equals_a_plain_forward_pass(folder, questions):
    images, texts = questions
    judge = TransformersJudge(folder, dtype="float32")
    prompt = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{PROMPT.format(question=texts[0])}"
    inputs = judge.processor(
        text=f"{prompt}<|im_end|>\n<|im_start|>assistant\n", images=Image.fromarray(images[0]), return_tensors="pt"
    )
    with torch.no_grad():
        last = judge.model(**inputs).logits[0, -1].log_softmax(-1)
    token = judge.processor.tokenizer.convert_tokens_to_ids
    yes, no = (max(last[token(word)], last[token(word.capitalize())]) for word in ("yes", "no"))
    assert judge.margins(images[:1], texts[:1]) == pytest.approx(float(yes - no), abs=1e-4)


def test_nothing_asked_and_unequal_numbers(folder, questions):
    judge = TransformersJudge(folder, dtype="float32")
    assert judge.answer([], []) == []
    with pytest.raises(ValueError, match="1 images, 2 questions"):
        judge.answer(questions[0][:1], ["a", "a"])


def test_bfloat16_answers(folder, questions):
    judge = TransformersJudge(folder, dtype="bfloat16")
    assert judge.model.dtype == torch.bfloat16
    assert set(judge.answer(*questions)) <= {"yes", "no"}


def test_models_that_cannot_judge_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        TransformersJudge(tmp_path / "absent")
    with pytest.raises(UserError, match="no single tokens for yes and no"):
        TransformersJudge(make_model(tmp_path / "wordless", words=WORDS[4:]))
    with pytest.raises(UserError, match="no chat template"):
        TransformersJudge(make_model(tmp_path / "plain", template=None))


def test_missing_weights_are_refused(folder, tmp_path):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    state = model.state_dict()
    missing = next(name for name in state if name.endswith("mlp.down_proj.weight"))
    model.save_pretrained(tmp_path / "model", state_dict={k: v for k, v in state.items() if k != missing})
    TransformersJudge(folder).processor.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="weights are missing: .*down_proj"):
        TransformersJudge(tmp_path / "model")


def test_the_default_model_is_of_an_architecture_that_is_installed():
    assert DEFAULT_MODEL.startswith("Qwen/Qwen2.5-VL")
    assert MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[Qwen2_5_VLConfig] is Qwen2_5_VLForConditionalGeneration


def test_mplug_without_modelscope_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(UserError, match="pip install 'modelscope"):
        MplugJudge()


def test_mplug_asks_modelscopes_pipeline(monkeypatch):
    """ModelScope itself is not installed here: what is tested is how its pipeline is called."""

    def pipeline(task, model, device):
        assert (task, model, device) == ("visual-question-answering", "some/model", "gpu")
        return lambda asked: {"text": f"{asked['question']} {asked['image'].mode} {asked['image'].size}"}

    tasks = SimpleNamespace(visual_question_answering="visual-question-answering")
    for name, content in {"pipelines": {"pipeline": pipeline}, "utils": {}, "utils.constant": {"Tasks": tasks}}.items():
        module = ModuleType(f"modelscope.{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "modelscope", ModuleType("modelscope"))
    judge = MplugJudge("some/model", device="gpu")
    image = np.zeros((4, 6, 3), np.uint8)
    assert judge.answer([image, Image.new("L", (2, 2))], ["a", "b"]) == ["a RGB (6, 4)", "b RGB (2, 2)"]
