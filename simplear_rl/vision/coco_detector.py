"""GenEval's detector: Mask2Former (arXiv 2112.01527) for the objects, CLIP for the colour of one.

The official pipeline (djghosh13/geneval) runs MMDetection 2's Mask2Former Swin-S and open_clip's ViT-L-14 of OpenAI;
facebook/mask2former-swin-small-coco-instance holds the same weights for Transformers. What Transformers does
differently by default is done here as MMDetection does it: images enter with a short side of 800 pixels instead of
384 x 384, and masks become instances at the image's own size, overlapping as they are. Two differences remain: images
are resized with antialiasing, and a side that is not a multiple of 32 is stretched instead of padded.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors import SafetensorError
from torch.nn.functional import interpolate, normalize
from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

from simplear_rl.config.benchmarks import DetectorConfig
from simplear_rl.errors import UserError
from simplear_rl.files import resolve
from simplear_rl.vision.clip import LOAD_ERRORS, load_clip
from simplear_rl.vision.coco_classes import CLASSES, COLOURS
from simplear_rl.vision.detection import Detection

FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
SIZE = {"shortest_edge": 800, "longest_edge": 1333}  # pixels
MAX_DETECTIONS = 100  # per image
TEMPLATES = ("a photo of a {colour} {label}", "a photo of a {colour}-colored {label}", "a photo of a {colour} object")
BACKGROUND = 0x99  # grey level around an object whose colour is asked for


class CocoDetector:
    """Implements the GenEval Detector with the two models of `config`.

    Raises:
        UserError: a model cannot be loaded whole, or does not know COCO's classes in their order.
    """

    def __init__(self, config: DetectorConfig, device: str = "cpu"):
        self.config, self.device, self.dtype = config, device, getattr(torch, config.dtype)
        self.processor, self.model = _load_mask2former(config)
        self.model = self.model.to(device, self.dtype).eval()
        try:
            self.clip, self.preprocess = load_clip(config.clip, config.clip_weights, config.dtype, device)
        except LOAD_ERRORS as error:
            raise UserError(
                f"detector.clip {config.clip} with weights {config.clip_weights}: cannot be loaded: {error}"
            ) from error
        self.tokenize = open_clip.get_tokenizer(config.clip)
        self.classifiers: dict[str, torch.Tensor] = {}  # per class, normalised features [colours, D]

    @torch.no_grad()
    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """The 100 best detections of each image (uint8 [H, W, 3]), with masks; those without a pixel are left out.

        Images that follow each other and have one size share a forward pass, up to `batch_size` of them.
        """
        detections: list[list[Detection]] = []
        for _, same_size in groupby(images, key=np.shape):
            batch = list(same_size)
            for start in range(0, len(batch), self.config.batch_size):
                detections += self._detect(batch[start : start + self.config.batch_size])
        return detections

    @torch.no_grad()
    def colour(self, image: np.ndarray, detection: Detection) -> str:
        """The colour that CLIP finds most likely for the object's pixels, cropped to its box on a grey ground."""
        left, top, right, bottom = (int(edge) for edge in detection.box)
        assert detection.mask is not None
        alone = np.where(detection.mask[..., None], image, np.uint8(BACKGROUND))[top:bottom, left:right]
        pixels = self.preprocess(Image.fromarray(alone))[None].to(self.device, self.dtype)
        features = normalize(self.clip.encode_image(pixels).float(), dim=-1)
        return COLOURS[int((self._classifier(detection.label) @ features[0]).argmax())]

    def _detect(self, images: list[np.ndarray]) -> list[list[Detection]]:
        pixels = self.processor(images, size=SIZE, return_tensors="pt").pixel_values
        outputs = self.model(pixels.to(self.device, self.dtype))
        return [
            _instances(classes_QC.float().softmax(-1)[:, :-1], masks_QHW.float(), pixels.shape[2:], images[0].shape[:2])
            for classes_QC, masks_QHW in zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)
        ]

    def _classifier(self, label: str) -> torch.Tensor:
        """Text features of the colours of a class: for each, the normalised mean over the templates."""
        if label not in self.classifiers:
            texts = [template.format(colour=colour, label=label) for colour in COLOURS for template in TEMPLATES]
            features = normalize(self.clip.encode_text(self.tokenize(texts).to(self.device)).float(), dim=-1)
            mean = features.view(len(COLOURS), len(TEMPLATES), -1).mean(dim=1)
            self.classifiers[label] = normalize(mean, dim=-1)
        return self.classifiers[label]


def _instances(
    classes_QC: torch.Tensor, masks_Qhw: torch.Tensor, entered: tuple[int, int], size: tuple[int, int]
) -> list[Detection]:
    """Detections from class probabilities and mask logits of the queries, as MMDetection's MaskFormerFusionHead.

    A confidence is the class probability times the mean probability of the mask's pixels; a box is what its mask spans.

    The image entered the model with the height and width `entered`; `size` is its own.
    """
    number = classes_QC.shape[1]
    probabilities, places = classes_QC.flatten().topk(MAX_DETECTIONS)
    for shape in entered, size:
        masks_Qhw = interpolate(masks_Qhw[None], tuple(shape), mode="bilinear", align_corners=False)[0]
    inside_QHW = masks_Qhw > 0
    certainty = (masks_Qhw.sigmoid() * inside_QHW).flatten(1).sum(1) / (inside_QHW.flatten(1).sum(1) + 1e-6)
    confidences = (probabilities * certainty[places // number]).tolist()
    masks = inside_QHW.cpu().numpy()
    boxes = [_box(mask) for mask in masks]
    return [
        Detection(CLASSES[place % number], confidence, box, masks[place // number])
        for place, confidence in zip(places.tolist(), confidences, strict=True)
        if (box := boxes[place // number])
    ]


def _box(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """What a mask spans, right and bottom edge exclusive; None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _load_mask2former(
    config: DetectorConfig,
) -> tuple[Mask2FormerImageProcessor, Mask2FormerForUniversalSegmentation]:
    folder = resolve(config.model, FILES)
    try:
        processor = Mask2FormerImageProcessor.from_pretrained(folder)
        model, loading = Mask2FormerForUniversalSegmentation.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"detector {config.model}: cannot be loaded: {error}") from error
    if loading["missing_keys"]:
        raise UserError(
            f"detector {config.model}: {len(loading['missing_keys'])} weights are missing, "
            f"for example {sorted(loading['missing_keys'])[0]}"
        )
    labels = model.config.id2label
    # Labels come in more than one spelling, so only a known one in another's place is a mistake.
    misplaced = [i for i, label in labels.items() if label in CLASSES and CLASSES.index(label) != i]
    if len(labels) != len(CLASSES) or misplaced:
        place = f"; class {misplaced[0]} is {labels[misplaced[0]]!r}" if misplaced else ""
        raise UserError(f"detector {config.model}: expected COCO's 80 classes in order, found {len(labels)}{place}")
    return processor, model
