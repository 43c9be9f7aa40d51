"""What the tests share: small worlds, and no network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from alignbench.models.base import Spec
from alignbench.models.gaussian_world import GaussianWorld
from alignbench.policy import Policy
from alignbench.samplers.ddim import DDIM

torch.set_num_threads(2)

FULL = Spec("full", 4, 4.0, ("to_q", "to_k", "to_v", "to_out.0"))
SANDBOX = "package://models/sandbox"
LORA = Spec("lora", 4, 4.0, ("to_q", "to_k", "to_v", "to_out.0"))


@pytest.fixture
def world() -> GaussianWorld:
    """Gaussian data N(0.5, 0.7^2) in 4 dimensions, in float64, with a copy named `policy`."""
    model = GaussianWorld(shape=(1, 2, 2), mean=0.5, std=0.7).double()
    model.grow("policy", FULL)
    return model


@pytest.fixture
def policy(world: GaussianWorld) -> Policy:
    return Policy(world, DDIM(steps=4, eta=1.0, guidance=1.0), "policy", chunk=64)
