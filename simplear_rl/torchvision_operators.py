"""Makes torchvision importable beside a CPU build of torch.

PyPI has CUDA builds of torchvision only. Beside a CPU build of torch their library of C++ operators does not load, and
`import torchvision` fails with "operator torchvision::nms does not exist". The operators' schemas are all it needs.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def declare_missing() -> None:
    """Declare the operators of a torchvision whose library does not load; beside a matching torch do nothing."""
    torchvision = find_spec("torchvision")
    if torchvision is None or torchvision.origin is None:
        return
    import torch  # not above: every command imports this module, and --help needs no torch

    for library in Path(torchvision.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            for name, schema in SCHEMAS.items():
                torch.library.define(name, schema)


class DeclareFirst(MetaPathFinder):
    """Finds no module, but calls `declare_missing` when torchvision is looked for the first time."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Leave every module to the finders that follow."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare_missing()
        return None


def declare_before_import() -> None:
    """Call `declare_missing` just before torchvision is first imported."""
    sys.meta_path.insert(0, DeclareFirst())
