"""DDPO with LoRA on the architectures of SD 1.5 and SDXL with random weights, on a GPU: speed, memory, and how near the hardware's limit.

    python benchmarks/gpu.py sd15 sdxl               # bf16, eager and compiled, ranks 4 and 32; writes benchmarks/results/<device>.json
    python benchmarks/gpu.py sd15 --tiny --cpu       # the same path in a minute, for a test; prints and writes nothing

Nothing is downloaded. Of SD 1.5 the plain loop of public scripts (plain.py) is measured by turns with ours, at the same micro-batch.
"""

import argparse
import gc
import json
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from architectures import sd15, sdxl
from plain import Plain
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from alignbench.compose import compose
from alignbench.experiment import Experiment
from alignbench.rewards.brightness import Brightness
from alignbench.rng import Draws

RESULTS = Path(__file__).parent / "results"
CARD = 24e9  # bytes of the smaller card that the largest micro-batch is found for
MAKE = {"sd15": sd15, "sdxl": sdxl}


def words(folder: Path, family: str, options: argparse.Namespace, rank: int, compiled: bool) -> list[str]:
    images, steps = (4, 2) if options.tiny else (options.images, options.steps)
    return [
        "method=ddpo",
        f"model={family}",
        f"model.path={folder}",
        "model.schedule={}",
        "adapter=lora",
        f"lora.rank={rank}",
        f"lora.alpha={rank}",
        "reward=brightness",
        "recipe=none",
        "method.advantage=batch",
        f"trainer={'default' if options.cpu else 'gpu'}",
        "trainer.gradient_checkpointing=false",
        f"trainer.compile={str(compiled).lower()}",
        f"trainer.micro_batch={options.micro_batch}",
        f"method.images={images}",
        f"method.batch={images}",
        f"sampler.steps={steps}",
        "sampler.deterministic=0",
        "epochs=1",
        "eval=plain",
        f"eval.batch={options.micro_batch}",
    ]


class Device:
    """The GPU, or for the tiny path the processor."""

    def __init__(self, cpu: bool):
        self.kind = "cpu" if cpu else "cuda"
        self.name = "cpu" if cpu else torch.cuda.get_device_name()

    def seconds(self, work: Any) -> float:
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.kind == "cuda":
            torch.cuda.synchronize()

    def fresh(self) -> None:
        gc.collect()
        if self.kind == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 1e9 if self.kind == "cuda" else None

    def rate(self) -> float:
        """Operations a second of bf16 matrix products: the fastest of three sizes."""
        best = 0.0
        for size in (256,) if self.kind == "cpu" else (4096, 8192, 12288):
            a = torch.randn(size, size, device=self.kind, dtype=torch.bfloat16)
            for _ in range(4):
                best = max(best, 2.0 * size**3 / self.seconds(lambda a=a: a @ a))
        return best


def epoch(experiment: Experiment) -> None:
    """Collecting and one optimiser step, in the update's precision."""
    method = experiment.method
    optimizer = method.configure_optimizers()
    for batch in experiment.collect():
        learn(experiment, batch)
    optimizer.step()
    optimizer.zero_grad()


def learn(experiment: Experiment, batch: Any) -> None:
    with experiment.precision():
        loss, _ = experiment.method.loss(batch)
    (loss / experiment.method.updates.accumulate).backward()


def plain_of(experiment: Experiment, folder: Path, options: argparse.Namespace, rank: int) -> Any:
    """An epoch of the plain loop on the same prompts and draws."""
    config, reward = experiment.config, Brightness()
    loop = Plain(
        folder,
        "ddpo",
        "lora",
        options.micro_batch,
        config["method"],
        config["sampler"],
        rank,
        lambda images: reward(images, []),
        device="cpu" if options.cpu else "cuda",
        autocast=not options.cpu,
    )
    images = config["method"]["images"]
    prompts = list(experiment.prompts.train[:images])

    def run() -> None:
        loop.collect(prompts, Draws(0, 0).each("rollout", range(images)), None)
        loop.update()

    return run


def measured(
    family: str, options: argparse.Namespace, rank: int, compiled: bool, folder: Path, device: Device, rate: float
) -> dict[str, Any]:
    device.fresh()
    experiment = Experiment.build(compose(words(folder, family, options, rank, compiled)).config)
    experiment.settle()
    images = experiment.config["method"]["images"]
    first = device.seconds(lambda: epoch(experiment))  # compiles, tunes
    memory = device.peak()
    loop = plain_of(experiment, folder, options, rank) if family == "sd15" and not compiled else None
    if loop:
        loop()
    ours, theirs = [], []
    for _ in range(options.repeats):
        if loop:
            theirs.append(device.seconds(loop))
        ours.append(device.seconds(lambda: epoch(experiment)))
    with FlopCounterMode(display=False) as counter:
        for batch in experiment.collect():
            learn(experiment, batch)
    seconds = statistics.median(ours)
    found = {
        "family": family,
        "rank": rank,
        "compiled": compiled,
        "micro_batch": options.micro_batch,
        "images": images,
        "steps": experiment.config["sampler"]["steps"],
        "first_seconds": first,
        "seconds_an_image": seconds / images,
        "peak_gb": memory,
        "tflop_an_image": counter.get_total_flops() / images / 1e12,
        "of_the_matmul_peak": counter.get_total_flops() / seconds / rate if not compiled else None,  # a compiled graph hides its operations
        "plain_seconds_an_image": statistics.median(theirs) / images if theirs else None,
        "times_the_plain_loop": statistics.median(theirs) / seconds if theirs else None,
    }
    if not compiled:
        found["remainder"] = remainder(experiment, device)
        found["largest_micro_batch"] = largest(experiment, options, device)
    return found


def remainder(experiment: Experiment, device: Device) -> list[dict[str, Any]]:
    """Where an update's time goes: the ten kernels that take most, in milliseconds."""
    batch = next(iter(experiment.collect()))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.kind == "cuda")
    with profile(activities=activities) as seen:
        learn(experiment, batch)
        device.wait()
    key = "self_device_time_total" if device.kind == "cuda" else "self_cpu_time_total"
    rows = sorted(seen.key_averages(), key=lambda row: -getattr(row, key))[:10]
    return [{"name": row.key, "ms": getattr(row, key) / 1e3, "calls": row.count} for row in rows]


def largest(experiment: Experiment, options: argparse.Namespace, device: Device) -> dict[str, int]:
    """The largest micro-batch whose update fits, in powers of 2: on a card of CARD bytes and on this one. Rows are repeated."""
    rows = next(iter(experiment.collect()))
    found: dict[str, int] = {}
    limits = {"24 GB": CARD, "this card": float(torch.cuda.mem_get_info()[1])} if device.kind == "cuda" else {"tiny": 0.0}
    for name, limit in limits.items():
        size, most = 0, 2 if options.tiny else 1024
        while (size or 1) * 2 <= most:
            wanted = size * 2 or 1
            index = torch.arange(wanted, device=rows.x.device) % len(rows)
            device.fresh()
            try:
                learn(experiment, rows.each(lambda column, index=index: column[index] if isinstance(column, Tensor) else column))
            except torch.OutOfMemoryError:
                break
            if device.kind == "cuda" and torch.cuda.max_memory_reserved() > limit:
                break
            size = wanted
        found[name] = size
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="+", choices=sorted(MAKE))
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--images", type=int, default=8, help="of an epoch")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        parser.error("there is no GPU here; --cpu --tiny tries the path")
    device = Device(options.cpu)
    rate = device.rate()
    print(f"{device.name}: {rate / 1e12:.3g} TFLOP/s in bf16 products", flush=True)
    report: dict[str, Any] = {"device": device.name, "torch": torch.__version__, "bf16_matmul_tflops": rate / 1e12, "measured": []}
    report["precision"] = "32-true" if options.cpu else "bf16-mixed"
    with tempfile.TemporaryDirectory() as work:
        for family in options.families:
            folder = Path(work) / family
            MAKE[family](folder, options.tiny)
            for rank in options.ranks:
                for compiled in (False,) if options.eager else (False, True):
                    torch.compiler.reset()
                    row = measured(family, options, rank, compiled, folder, device, rate)
                    report["measured"].append(row)
                    print(json.dumps(row), flush=True)
    print(json.dumps(report, indent=1))
    if not options.tiny and not options.cpu:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{re.sub('[^a-z0-9]+', '-', device.name.lower())}.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
