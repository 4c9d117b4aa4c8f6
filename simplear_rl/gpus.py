"""What GPUs can do at most, by their names."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """What one device can do at most."""

    bandwidth: float  # of its memory, bytes/s
    bfloat16: float  # dense, floating-point operations/s; float16 is as fast
    float32: float
    memory: float  # GiB
    link: float  # to another device of its node, one way, bytes/s

    def flops(self, dtype: str) -> float:
        """Operations per second in this type."""
        return self.float32 if dtype == "float32" else self.bfloat16


# The manufacturer's data sheets, without sparsity. The first name that stands in a device's own counts.
GPUS = {
    "A100-SXM4-40GB": Device(1.56e12, 312e12, 19.5e12, 40, 300e9),
    "A100-PCIE-40GB": Device(1.56e12, 312e12, 19.5e12, 40, 32e9),
    "A100 80GB PCIe": Device(1.94e12, 312e12, 19.5e12, 80, 32e9),
    "A100": Device(2.04e12, 312e12, 19.5e12, 80, 300e9),
    "H100 PCIe": Device(2.04e12, 756e12, 51e12, 80, 64e9),
    "H100 NVL": Device(3.94e12, 835e12, 60e12, 94, 300e9),
    "H100": Device(3.35e12, 989e12, 67e12, 80, 450e9),
    "H200 NVL": Device(4.8e12, 835e12, 60e12, 141, 450e9),
    "H200": Device(4.8e12, 989e12, 67e12, 141, 450e9),
    "L40S": Device(0.864e12, 362e12, 91.6e12, 48, 32e9),
    "RTX 4090": Device(1.01e12, 165e12, 82.6e12, 24, 32e9),
    "RTX 3090": Device(0.936e12, 71e12, 35.6e12, 24, 32e9),
    "A10": Device(0.6e12, 125e12, 31.2e12, 24, 32e9),
    "L4": Device(0.3e12, 121e12, 30.3e12, 24, 32e9),
}


def gpu_name(device: str) -> str | None:
    """The table's name of what CUDA calls, for example, "NVIDIA H100 80GB HBM3"; None if it is not there."""
    return next((name for name in GPUS if re.search(rf"\b{name}\b", device)), None)
