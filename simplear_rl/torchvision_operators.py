"""Makes torchvision importable beside a CPU build of torch.

PyPI has CUDA builds of torchvision only. Beside a CPU build of torch their library of C++ operators does not load, and
`import torchvision` fails with "operator torchvision::nms does not exist". The operators' schemas are all it needs.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def declare_missing() -> None:
    """Declare the operators of a torchvision whose library does not load; beside a matching torch do nothing."""
    torchvision = find_spec("torchvision")
    if torchvision is None or torchvision.origin is None:
        return
    for library in Path(torchvision.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            for name, schema in SCHEMAS.items():
                torch.library.define(name, schema)
