"""ImageReward (arXiv 2304.05977): BLIP's text encoder, which looks at the image, and a head of five linear layers.

    {type: python, function: examples/rewards/image_reward.py:ImageReward}

The published weights go into BLIP as Transformers has it. Their sizes are those of the network.
"""

import re

import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from torch import nn
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from transformers import AutoTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

CONTEXT, HEAD_SIZE, PIXELS = 35, 64, 224
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the head's output
COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NAMES = {  # of the published weights, and in Transformers
    r"^cls_token": "embeddings.class_embedding",
    r"^pos_embed": "embeddings.position_embedding",
    r"^patch_embed\.proj": "embeddings.patch_embedding",
    r"^blocks\.(\d+)\.norm(\d)": r"encoder.layers.\1.layer_norm\2",
    r"^blocks\.(\d+)\.attn\.(qkv|proj)": r"encoder.layers.\1.self_attn.\2",
    r"\.proj\.": ".projection.",
    r"^blocks": "encoder.layers",
    r"^norm\.": "post_layernorm.",
}


class ImageReward:
    """Weights: a file, or null for the Hugging Face hub. Longer prompts are refused, not cut."""

    def __init__(self, weights: str | None = None, tokenizer: str = "bert-base-uncased"):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        saved = torch.load(weights or hf_hub_download("THUDM/ImageReward", "ImageReward.pt"), "cpu", weights_only=True)
        below = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
        parts = [{n.removeprefix(p): v for n, v in saved.items() if n.startswith(p)} for p in below]
        width, text_width = parts[0]["cls_token"].shape[-1], parts[2]["0.weight"].shape[1]
        sizes = {"hidden_size": width, "num_attention_heads": width // HEAD_SIZE, "image_size": PIXELS}
        sizes |= {"intermediate_size": parts[0]["blocks.0.mlp.fc1.bias"].numel(), "layer_norm_eps": 1e-6}
        depth = sum(name.endswith("norm1.bias") for name in parts[0])
        self.vision = BlipVisionModel(BlipVisionConfig(**sizes, num_hidden_layers=depth, patch_size=16))
        vocabulary, positions = (len(parts[1][f"embeddings.{n}_embeddings.weight"]) for n in ("word", "position"))
        sizes = {"hidden_size": text_width, "num_attention_heads": text_width // HEAD_SIZE, "vocab_size": vocabulary}
        sizes |= {"intermediate_size": parts[1]["encoder.layer.0.intermediate.dense.bias"].numel()}
        sizes |= {"encoder_hidden_size": width, "max_position_embeddings": positions}
        depth = sum(name.endswith("intermediate.dense.bias") for name in parts[1])
        self.text = BlipTextModel(BlipTextConfig(**sizes, num_hidden_layers=depth), add_pooling_layer=False)
        linear = {i: nn.Linear(*parts[2][f"{i}.weight"].T.shape) for i in (0, 2, 4, 6, 7)}
        self.head = nn.Sequential(*(linear.get(i, nn.Dropout()) for i in range(8)))
        self.vision.load_state_dict({_renamed(name): value for name, value in parts[0].items()})
        self.text.load_state_dict({n: v for n, v in parts[1].items() if n != "embeddings.position_ids"})
        self.head.load_state_dict(parts[2])
        for network in self.vision, self.text, self.head:
            network.to(self.device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        resize = Resize(PIXELS, InterpolationMode.BICUBIC)
        self.preprocess = Compose([resize, CenterCrop(PIXELS), ToTensor(), Normalize(*COLOURS)])

    @torch.no_grad()
    def __call__(self, images: list[Image.Image], prompts: list[str]) -> list[float]:
        """A score for each image."""
        text = self.tokenizer(prompts, padding="max_length", max_length=CONTEXT, return_tensors="pt").to(self.device)
        if text["input_ids"].shape[1] > CONTEXT:
            raise ValueError(f"{max(prompts, key=len)!r} is longer than the {CONTEXT} tokens that ImageReward reads")
        seen = self.vision(torch.stack([self.preprocess(image) for image in images]).to(self.device)).last_hidden_state
        look = {"encoder_hidden_states": seen, "encoder_attention_mask": torch.ones(seen.shape[:2], device=self.device)}
        read = self.text(text["input_ids"], attention_mask=text["attention_mask"], is_decoder=False, **look)
        return ((self.head(read.last_hidden_state[:, 0]) - MEAN) / DEVIATION)[:, 0].tolist()


def _renamed(name: str) -> str:
    for pattern, replacement in NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name
