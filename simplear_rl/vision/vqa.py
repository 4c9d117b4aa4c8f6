"""The visual judges: a vision-language model of Transformers, and mPLUG."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor

from simplear_rl.config.benchmarks import JUDGES
from simplear_rl.errors import UserError
from simplear_rl.files import resolve
from simplear_rl.vision.files import NEEDS_MODELSCOPE
from simplear_rl.vision.judges import Picture

DEFAULT_MODEL, MPLUG_MODEL = JUDGES["transformers"], JUDGES["mplug"]
PROMPT = "{question}\nLook at the image and answer with one word, yes or no."
SPELLINGS = (("yes", "no"), ("Yes", "No"), (" yes", " no"), (" Yes", " No"))
FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")


class TransformersJudge:
    """A vision-language model of Transformers, asked in its own chat template, with PROMPT for an answer.

    The answer is the likelier of yes and no as the reply's first token: greedy decoding that may write nothing else.
    So there is no reply to parse ("Yes, there is a cat."), every question has an answer, and it takes one token. A tie
    is no.

    Args:
        model: folder, or Hugging Face id.
        batch_size: questions per forward pass.
        dtype: of the weights: "float32", "bfloat16" or "float16". Half precision can turn a close answer when the
            batch changes.

    Raises:
        UserError: the model cannot be loaded or lacks weights, its processor has no chat template, or yes and no are
            not single tokens.
    """

    def __init__(
        self, model: Path = Path(DEFAULT_MODEL), batch_size: int = 16, dtype: str = "bfloat16", device: str = "cpu"
    ):
        self.name, self.batch_size, self.device = str(model), batch_size, device
        folder = resolve(model, FILES)
        try:
            self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            self.model, loading = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise UserError(f"judge {model}: cannot be loaded: {error}") from error
        if loading["missing_keys"]:
            raise UserError(f"judge {model}: weights are missing: {', '.join(sorted(loading['missing_keys']))}")
        if not self.processor.chat_template:
            raise UserError(f"judge {model}: its processor has no chat template, so it is not a chat model")
        self.model.to(device).eval()
        self.processor.tokenizer.padding_side = "left"  # every row ends where the reply begins
        self.yes_tokens, self.no_tokens = self._single_tokens()

    def _single_tokens(self) -> tuple[list[int], list[int]]:
        """Ids of yes and no, of the spellings in which both are one known token."""
        tokenizer = self.processor.tokenizer
        pairs = set()
        for words in SPELLINGS:
            yes, no = (tokenizer.encode(word, add_special_tokens=False) for word in words)
            if len(yes) == len(no) == 1 and yes != no and tokenizer.unk_token_id not in yes + no:
                pairs.add((yes[0], no[0]))
        if not pairs:
            raise UserError(f"judge {self.name}: its tokenizer has no single tokens for yes and no")
        return [yes for yes, _ in sorted(pairs)], [no for _, no in sorted(pairs)]

    def answer(self, images: Sequence[Picture], questions: Sequence[str]) -> list[str]:
        """Say "yes" or "no" to each question about the image at the same place."""
        return ["yes" if margin > 0 else "no" for margin in self.margins(images, questions)]

    def margins(self, images: Sequence[Picture], questions: Sequence[str]) -> np.ndarray:
        """How much likelier yes is than no: difference of their log-probs, float32 [N]."""
        asked = [PROMPT.format(question=question) for question in questions]
        margins = [np.zeros(0, np.float32)]
        for scores_BC in self._scores(images, asked):
            margin = scores_BC[:, self.yes_tokens].amax(1) - scores_BC[:, self.no_tokens].amax(1)
            margins.append(margin.cpu().numpy())
        return np.concatenate(margins)

    def probabilities(
        self, images: Sequence[Picture], questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """How likely the reply to each question begins like one of its answers, float32 [N].

        That is the sum, over the spellings in `answers`, of the probability of each one's first token, see GenEval 2's
        rules. Questions are asked as they stand; probabilities are those of greedy decoding's scores, in float32.
        """
        tokens = [[self._first_token(spelling) for spelling in spellings] for spellings in answers]
        found: list[float] = []
        for scores_BC in self._scores(images, questions):
            for probabilities_C in scores_BC.softmax(-1):
                found.append(float(probabilities_C[tokens[len(found)]].sum()))
        return np.array(found, np.float32)

    def _first_token(self, spelling: str) -> int:
        """As the spelling stands there. A tokenizer that begins every text with a token of its own would hide it."""
        return int(self.processor.tokenizer.encode(spelling, add_special_tokens=False)[0])

    @torch.no_grad()
    def _scores(self, images: Sequence[Picture], texts: Sequence[str]) -> Iterator[torch.Tensor]:
        """Scores float32 [B, C] of the reply's first token over the vocabulary, for so many questions at a time."""
        pictures, prompts = [_as_rgb(image) for image in images], [self._text(text) for text in texts]
        if len(pictures) != len(prompts):
            raise ValueError(f"{len(pictures)} images, {len(prompts)} questions")
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            inputs = self.processor(
                text=prompts[part], images=[[picture] for picture in pictures[part]], padding=True, return_tensors="pt"
            ).to(self.device, self.model.dtype)
            # `generate` rather than `forward`: it numbers the positions of padded rows as each model needs.
            reply = self.model.generate(
                **inputs, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
            )
            yield reply.scores[0].float()

    def _text(self, text: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


class MplugJudge:
    """mPLUG-large through ModelScope: the judge of DPG-Bench's published scores, one question at a time.

    ModelScope's preprocessing lowers the case of a question and cuts it at 25 tokens, as for the published scores.

    Raises:
        UserError: ModelScope cannot be imported.
    """

    def __init__(self, model: str = MPLUG_MODEL, device: str = "cpu"):
        try:
            from modelscope.pipelines import pipeline
            from modelscope.utils.constant import Tasks
        except ImportError as error:
            raise UserError(f"judge {model} {NEEDS_MODELSCOPE} ({error})") from error
        self.name = model
        self.pipeline = pipeline(Tasks.visual_question_answering, model=model, device=device)

    def answer(self, images: Sequence[Picture], questions: Sequence[str]) -> list[str]:
        """The model's own words for each question about the image at the same place."""
        return [
            self.pipeline({"image": _as_rgb(image), "question": question})["text"]
            for image, question in zip(images, questions, strict=True)
        ]


def _as_rgb(image: Picture) -> Image.Image:
    return (Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB")
