"""PickScore (arXiv 2305.01569): a CLIP ViT-H-14 fine-tuned on the choices of Pick-a-Pic's users.

    {type: python, function: examples/rewards/pickscore.py:PickScore, arguments: {batch_size: 16}}

The score is exp(logit_scale) * cosine, about 17 to 24 with the published weights.
"""

import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoProcessor, CLIPModel

CONTEXT = 77  # tokens that it reads


class PickScore:
    """Folders or Hugging Face ids of the network and of its processor. Longer prompts are refused, not cut."""

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        batch_size: int = 32,
    ):
        self.device, self.batch_size = "cuda" if torch.cuda.is_available() else "cpu", batch_size
        self.processor = AutoProcessor.from_pretrained(processor)
        self.model = CLIPModel.from_pretrained(model).to(self.device).eval()

    def __call__(self, images: list[Image.Image], prompts: list[str]) -> list[float]:
        """A score for each image."""
        starts = range(0, len(images), self.batch_size)
        parts = [slice(start, start + self.batch_size) for start in starts]
        return [score for part in parts for score in self.score(images[part], prompts[part])]

    @torch.no_grad()
    def score(self, images: list[Image.Image], prompts: list[str]) -> list[float]:
        """The scores of one batch."""
        text = self.processor(text=prompts, padding=True, return_tensors="pt").to(self.device)
        if text["input_ids"].shape[1] > CONTEXT:
            raise ValueError(f"{max(prompts, key=len)!r} is longer than the {CONTEXT} tokens that PickScore reads")
        pixels = self.processor(images=images, return_tensors="pt").to(self.device)
        image_BD = self.model.visual_projection(self.model.vision_model(**pixels).pooler_output)
        text_BD = self.model.text_projection(self.model.text_model(**text).pooler_output)
        cosine_B = (normalize(image_BD, dim=-1) * normalize(text_BD, dim=-1)).sum(-1)
        return (self.model.logit_scale.exp() * cosine_B).tolist()
