"""What this machine reaches at most, on one thread in fp32: operations a second of matrix products and of convolutions, and its name."""

import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

PRODUCTS = [(512, 512, 512), (1024, 1024, 1024), (2048, 256, 256)]
CONVOLUTIONS = [(8, 64, 16), (8, 128, 16), (8, 128, 8), (16, 128, 16), (8, 256, 16)]  # images, channels, size; kernels of 3 x 3


def best(work: Callable[[], object], operations: float, seconds: float = 0.4) -> float:
    """Operations a second of processor time, of the fastest of the calls that fit into `seconds`."""
    work()
    fastest, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.process_time()
        for _ in range(3):
            work()
        fastest = max(fastest, 3 * operations / max(time.process_time() - began, 1e-9))
    return fastest


@torch.no_grad()
def rates() -> dict[str, float]:
    """Operations a second: the fastest of several shapes, forward."""
    found = {"matmul": 0.0, "convolution": 0.0}
    for rows, inner, columns in PRODUCTS:
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        found["matmul"] = max(found["matmul"], best(lambda a=a, b=b: a @ b, 2.0 * rows * inner * columns))
    for images, channels, size in CONVOLUTIONS:
        x, kernel = torch.randn(images, channels, size, size), torch.randn(channels, channels, 3, 3)
        operations = 2.0 * images * channels * channels * 9 * size * size
        found["convolution"] = max(
            found["convolution"], best(lambda x=x, kernel=kernel: torch.nn.functional.conv2d(x, kernel, padding=1), operations)
        )
    return found


def name() -> str:
    """Of the processor, as a file is called."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2] for line in lines if line.startswith("model name")), platform.processor() or platform.machine())
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
