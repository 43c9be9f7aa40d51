"""The benchmarks' architectures are the real ones, and their path runs here on small ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import ddpo_lora  # noqa: E402


@pytest.mark.parametrize("unet, millions", [(ddpo_lora.sd15_unet, 859.5), (ddpo_lora.sdxl_unet, 2567.5)], ids=["sd15", "sdxl"])
def test_the_architecture_has_its_published_size(unet, millions: float) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in unet(tiny=False).parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_path_runs(family: str) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "ddpo_lora.py", family, "--tiny", "--cpu"], capture_output=True, text=True, check=True, timeout=300
    )
    (measured,) = json.loads(done.stdout[done.stdout.index("{\n") :])["measured"]
    assert measured["images_a_second"] > 0
    assert measured["family"] == family
