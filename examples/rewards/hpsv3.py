"""HPSv3 (arXiv 2508.03789): Qwen2-VL-7B with a head on one token, where it reads how much people like an image.

    {type: python, function: examples/rewards/hpsv3.py:HPSv3}

    pip install --no-deps hpsv3

The package has the words that the model is asked with. The rest of it needs older libraries than ours.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoProcessor, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

PIXELS, FACTOR = 256 * 28 * 28, 28  # of every image, and what its sides are multiples of
REWARD_TOKEN = "<|Reward|>"


class HPSv3:
    """Weights: a file, or null for the Hugging Face hub; `model` has the network's configuration and its processor."""

    def __init__(self, weights: str | None = None, model: str = "Qwen/Qwen2-VL-7B-Instruct", dtype: str = "bfloat16"):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.processor = AutoProcessor.from_pretrained(model)
        self.processor.tokenizer.padding_side = "right"
        self.processor.tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
        self.token = self.processor.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        self.words = _words()
        saved = load_file(weights or hf_hub_download("MizzenAI/HPSv3", "HPSv3.safetensors"))
        config = AutoConfig.from_pretrained(model)
        config.text_config.vocab_size = len(saved["model.embed_tokens.weight"])
        self.model = Qwen2VLModel(config).to(getattr(torch, dtype))
        kept = {f"language_{n}" if n.startswith("model.") else n: v for n, v in saved.items()}
        self.model.load_state_dict({n: v for n, v in kept.items() if n.startswith(("language_model.", "visual."))})
        wide, mid, out = (saved[f"rm_head.{i}.weight"].shape for i in (0, 3, 5))
        self.head = nn.Sequential(
            nn.Linear(*wide[::-1]), nn.ReLU(), nn.Dropout(0.05), nn.Linear(*mid[::-1]), nn.ReLU(), nn.Linear(*out[::-1])
        )
        self.head.load_state_dict({n.removeprefix("rm_head."): v for n, v in saved.items() if n.startswith("rm_head.")})
        self.model.to(self.device).eval()
        self.head.to(self.device, torch.float32).eval()

    @torch.no_grad()
    def __call__(self, images: list[Image.Image], prompts: list[str]) -> list[float]:
        """The mean of the preference that it reads, of each image."""
        sizes = [smart_resize(i.height, i.width, FACTOR, PIXELS, PIXELS) for i in images]
        resized = [image.resize((width, height)) for image, (height, width) in zip(images, sizes, strict=True)]
        asked = [{"type": "text", "text": self.words.format(text_prompt=prompt)} for prompt in prompts]
        chats = [[{"role": "user", "content": [{"type": "image"}, text]}] for text in asked]
        text = self.processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        inputs = self.processor(text=text, images=resized, padding=True, return_tensors="pt").to(self.device)
        ids = inputs["input_ids"]
        seen = self.model.visual(inputs["pixel_values"].to(self.model.dtype), grid_thw=inputs["image_grid_thw"])
        embedded = self.model.get_input_embeddings()(ids)
        places = (ids == self.model.config.image_token_id)[..., None].expand_as(embedded)
        embedded = embedded.masked_scatter(places, seen.pooler_output.to(embedded.dtype))
        # The published code gives the language model no positions: it counts on in one dimension.
        states = self.model.language_model(inputs_embeds=embedded, attention_mask=inputs["attention_mask"])
        return self.head(states.last_hidden_state[ids == self.token].float())[:, 0].tolist()


def _words() -> str:
    """The instruction and the question, from the package's source."""
    if (package := find_spec("hpsv3")) is None:
        raise ImportError("pip install --no-deps hpsv3")
    file = Path(package.submodule_search_locations[0], "dataset", "data_collator_qwen.py")
    parts = {
        node.targets[0].id: node.value
        for node in ast.parse(file.read_text("utf-8")).body
        if isinstance(node, ast.Assign)
    }
    return "".join(ast.literal_eval(parts[name]) for name in ("INSTRUCTION", "prompt_with_special_token"))
