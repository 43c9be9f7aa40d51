"""What saves memory or time changes no result: losses and gradients on the sandbox with and without, and proof that each is on at all."""

import copy
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FULL, LORA, SANDBOX
from diffusers import UNet2DConditionModel
from lightning.pytorch import Callback, Trainer
from methods_zoo import Hill, made, moved, prompts_of
from torch import Tensor, nn

from alignbench.compose import compose
from alignbench.config import ECONOMIES
from alignbench.experiment import Experiment
from alignbench.methods.base import Method
from alignbench.methods.di_star import DIStar, GeneratorTurn
from alignbench.models.base import Spec
from alignbench.models.stable_diffusion import StableDiffusion
from alignbench.rng import Draws, generator
from alignbench.rollouts import Rollouts

NONE = dict.fromkeys(ECONOMIES, False)
SPECS = pytest.mark.parametrize("spec", [LORA, FULL], ids=["lora", "full"])


def a_model(spec: Spec) -> StableDiffusion:
    torch.manual_seed(0)  # an adapter's first weights
    model = StableDiffusion(path=SANDBOX, revision=None, init=None, gated=False, dtype="float32", schedule={})
    model.grow("policy", spec)
    return model


def a_method(name: str, spec: Spec, **on: bool) -> Method:
    """Away from its start, so that policy, critic and reference differ; in order, as experiment.build does it."""
    size = {"batch": 3} if name == "di_star" else {"images": 6, "batch": 3}
    method = moved(made(name, model=a_model(spec), spec=spec, reward=Hill(), **size), 0.02)
    method.policy.model.economise(**(NONE | on))
    return method


def last_batch(method: Method) -> Any:
    batch = list(method.collect(prompts_of(method, ["a small red circle", "a large white ring"]), Draws(0, 0)))[-1]
    assert not isinstance(method, DIStar) or isinstance(batch, GeneratorTurn)
    return batch


def turn(method: Method, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a minibatch and the gradient of every weight that has one."""
    loss, _ = method.loss(batch)
    loss.backward()
    return loss.detach(), {name: each.grad.clone() for name, each in method.named_parameters() if each.grad is not None}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference between two gradients, as a share of the largest entry."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one) / max(each.abs().max().item() for each in one.values())


@SPECS
@pytest.mark.parametrize("name", ["ddpo", "di_star"])
@pytest.mark.parametrize(("economy", "tolerance", "of_gradients"), [("gradient_checkpointing", 1e-6, 1e-6), ("channels_last", 1e-5, 1e-4)])
def test_losses_and_gradients_stay(economy: str, tolerance: float, of_gradients: float, name: str, spec: Spec) -> None:
    """Checkpointing bit for bit in fact. Another layout sums in another order; DDPO's gradient is a difference of larger numbers."""
    usual = a_method(name, spec)
    batch = last_batch(usual)
    (loss, plain), (again, saved) = turn(usual, batch), turn(a_method(name, spec, **{economy: True}), batch)
    print(f"FIGURE {economy} {name} {spec.kind} loss {abs(again - loss).item() / abs(loss).item():.2e} grad {apart(plain, saved):.2e}")
    torch.testing.assert_close(again, loss, rtol=tolerance, atol=tolerance)
    assert apart(plain, saved) <= of_gradients
    assert max(each.abs().max() for each in plain.values()) > 0


def kept(model: StableDiffusion, **on: bool) -> tuple[int, int]:
    """Bytes that a forward pass keeps for its backward pass, and how often a block ran in both."""
    model.economise(**(NONE | on))
    sizes: dict[int, int] = {}
    runs: list[None] = []
    unet = model.denoiser if not model.copies else model.copies["policy"]
    block = [each for each in unet.modules() if type(each).__name__ == "ResnetBlock2D"][-1]  # before the first adapter nothing is kept
    block.register_forward_pre_hook(lambda *_: runs.append(None))  # the second time it stops once the last activation is there
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(4, *model.shape, generator=generator(0, "x"))
    cond = model.encode(["a small red circle"] * 4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.eps(x, torch.full((4,), 500), cond, "policy").square().mean()
    held = sum(sizes.values())
    loss.backward()
    return held, len(runs)


@SPECS
def test_blocks_are_run_again_though_the_model_is_in_eval_mode(spec: Spec) -> None:
    (plain, once), (saved, twice) = kept(a_model(spec)), kept(a_model(spec), gradient_checkpointing=True)
    print(f"FIGURE kept {spec.kind} {plain} {saved}")
    assert (once, twice) == (1, 2)
    assert saved < plain / 2


def test_what_is_run_again_runs_as_it_did() -> None:
    """diffusers' own function computes the policy's blocks again with the adapter that is on by then: other gradients, or an error."""
    method, usual = a_method("di_star", LORA), a_method("di_star", LORA)
    batch = last_batch(usual)
    _, plain = turn(usual, batch)
    model = method.policy.model
    assert isinstance(model, StableDiffusion)
    for network in (model.denoiser, model.vae):
        network.enable_gradient_checkpointing()
    try:
        _, naive = turn(method, batch)
    except torch.utils.checkpoint.CheckpointError as error:
        print("FIGURE naive", str(error)[:90])
        return
    print(f"FIGURE naive {apart(plain, naive):.2e}")
    assert apart(plain, naive) > 1e-3


def test_tiles_are_for_images_larger_than_the_vaes_own() -> None:
    """At the VAE's own size nothing changes; above it the sandbox's VAE, whose tiles are 8 latents wide, gives quite other images."""
    plain, tiled = a_model(LORA), a_model(LORA)
    tiled.economise(**(NONE | {"vae_tiling": True}))
    assert tiled.vae.use_tiling
    assert not plain.vae.use_tiling
    own = torch.randn(1, *plain.shape, generator=generator(0, "x"))
    large = torch.nn.functional.interpolate(own, scale_factor=2, mode="bilinear")
    with torch.no_grad():
        assert torch.equal(plain.decode(own), tiled.decode(own))
        difference = (plain.decode(large) - tiled.decode(large)).abs()
    print(f"FIGURE tiling mean {difference.mean():.4f} max {difference.max():.4f}")
    assert difference.max() > 0.01


@pytest.mark.slow
@SPECS
def test_the_compiled_network_is_the_eager_one(spec: Spec) -> None:
    """Policy and reference by turns, without and with gradient, and gradient checkpointing inside."""
    torch.compiler.reset()
    for more in ({}, {"gradient_checkpointing": True}):
        eager, compiled = (moved(made("ddpo", model=a_model(spec), spec=spec), 0.02).policy.model for _ in range(2))
        compiled.economise(**(NONE | more | {"compile": True}))
        x, t = torch.randn(2, *eager.shape, generator=generator(0, "x")), torch.tensor([11, 701])
        cond = eager.encode(["a small red circle", "a large white ring"])
        for who in ("policy", None, "policy", None):
            with torch.no_grad():
                one, other = eager.eps(x, t, cond, who), compiled.eps(x, t, cond, who)
            torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
            print(f"FIGURE compile {spec.kind} {more} {who} {(one - other).abs().max():.2e}")
        gradients = []
        for model in (eager, compiled):
            (model.eps(x, t, cond, "policy") - model.eps(x, t, cond, None)).square().mean().backward()
            gradients.append({name: each.grad for name, each in model.trainable("policy").items() if each.grad is not None})
        print(f"FIGURE compile grad {apart(*gradients):.2e}")
        assert apart(*gradients) < 1e-4


@SPECS
def test_export_and_copies_survive_all_of_it(spec: Spec, tmp_path: Path) -> None:
    model = a_model(spec)
    for each in model.trainable("policy").values():
        each.data += 0.01
    model.economise(gradient_checkpointing=True, compile=True, channels_last=True, vae_tiling=True)
    model.export("policy", tmp_path, spec)
    assert list(tmp_path.rglob("*.safetensors"))
    copy.deepcopy(model.denoiser)
    if spec.kind == "full":
        written = dict(UNet2DConditionModel.from_pretrained(tmp_path / "unet").named_parameters())
        assert all(torch.equal(written[name], each) for name, each in model.trainable("policy").items())


def test_a_config_says_so_and_the_run_is_the_same_run() -> None:
    words = [f"trainer.{key}=true" for key in ("gradient_checkpointing", "channels_last")]
    plain, saving = compose(["epochs=1"]), compose(["epochs=1", *words])
    assert saving.hash == plain.hash
    assert saving.command == plain.command
    model = Experiment.build(saving.config).model
    assert isinstance(model, StableDiffusion)
    networks: list[nn.Module] = [model.denoiser, *model.copies.values()]
    assert all(network.is_gradient_checkpointing for network in (*networks, model.vae))
    assert all(network.conv_in.weight.is_contiguous(memory_format=torch.channels_last) for network in networks)
    tiled = compose(["epochs=1", "trainer.vae_tiling=true"])
    assert tiled.hash != plain.hash  # images larger than the VAE's own size change
    assert compose([*shlex.split(tiled.command)[3:]]).hash == tiled.hash
    assert Experiment.build(tiled.config).model.vae.use_tiling  # type: ignore[union-attr]
    compiled = Experiment.build(compose(["epochs=1", "trainer.compile=true"]).config).model
    assert all(network._compiled_call_impl is not None for network in compiled.copies.values())


@pytest.mark.parametrize(
    ("words", "fused"), [([], True), (["+method.optimizer.fused=false"], False), (["+method.optimizer.foreach=true"], None)]
)
def test_the_optimizer_is_fused_unless_the_config_says_otherwise(words: list[str], fused: bool | None) -> None:
    steps = []
    for more in ([], ["+method.optimizer.fused=false"], words):
        method = Experiment.build(compose(["adapter=lora", "epochs=1", *more]).config).method
        optimizer, parameters = method.configure_optimizers(), list(method.policy.trainable().values())
        for number in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator(number, "gradient"))
            optimizer.step()
        steps.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert [group["fused"] for group in optimizer.param_groups] == [fused]
    for other in steps[1:]:
        torch.testing.assert_close(other, steps[0], rtol=1e-6, atol=1e-8)


def test_no_gradient_is_held_while_the_next_images_are_made() -> None:
    words = ["reward=jpeg_compressibility", "eval=plain", "epochs=1", "method.images=8", "method.batch=8", "sampler.steps=3"]
    experiment, held = Experiment.build(compose(words).config), list[bool]()
    method = experiment.method

    def collect() -> Any:
        held.append(any(parameter.grad is not None for parameter in method.parameters()))
        return experiment.collect()

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_epochs=2, accumulate_grad_batches=method.updates.accumulate, **quiet)
    before = {name: parameter.clone() for name, parameter in method.policy.trainable().items()}
    trainer.fit(method, Rollouts(collect, len(method.updates)))
    assert held == [False, False]
    assert any(not torch.equal(parameter, before[name]) for name, parameter in method.policy.trainable().items())


def test_an_epochs_means_are_over_its_own_batches_and_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["reward=jpeg_compressibility", "eval=plain", "epochs=1", "method.images=8", "method.batch=8", "sampler.steps=3"]
    experiment = Experiment.build(compose([*words, "trainer.micro_batch=4"]).config)
    method, seen, epochs = experiment.method, list[tuple[float, int]](), list[tuple[dict[str, float], dict[str, float]]]()
    loss = method.loss

    def watched(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        found, _ = loss(batch)
        seen.append((found.item(), len(batch)))
        return found, {"number": torch.tensor(float(len(seen)))} | ({"first": torch.tensor(7.0)} if len(seen) == 1 else {})

    class Ended(Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            batches = list(enumerate(seen, 1))[-len(method.updates) :]
            rows = sum(size for _, (_, size) in batches)
            mean = sum(value * size for _, (value, size) in batches) / rows, sum(number * size for number, (_, size) in batches) / rows
            epochs.append((method.learned(), dict(zip(("loss", "number"), mean, strict=True))))

    def collect() -> list[Any]:
        sizes = zip(experiment.collect(), (1, 4), strict=True)  # a method's own batches are of one size
        return [batch.each(lambda column, size=size: column[:size]) for batch, size in sizes]

    monkeypatch.setattr(method, "loss", watched)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_epochs=2, accumulate_grad_batches=method.updates.accumulate, callbacks=[Ended()], **quiet)
    trainer.fit(method, Rollouts(collect, len(method.updates)))
    assert [size for _, size in seen] == [1, 4, 1, 4]
    for found, expected in epochs:
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert ["first" in found for found, _ in epochs] == [True, False]
    assert epochs[0][0]["first"] == 7
    assert set(method.collected) < set(epochs[1][0])


@pytest.mark.parametrize("keeps", [True, False])
def test_glibc_keeps_what_tensors_free_once_it_is_told(keeps: bool) -> None:
    """In a process of its own: what is set holds for good. Elsewhere than on glibc nothing is set."""
    program = f"""
import torch
from pathlib import Path
from alignbench.run import keep_memory
def held():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")) / 1024
if {keeps}:
    keep_memory()
torch.ones(8)
before = held()
blocks = [torch.ones(4, 1024, 1024) for _ in range(8)]  # 16 MB each
taken = held() - before
del blocks
print(taken, held() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    taken, left = map(float, done.stdout.split())
    assert taken > 100
    assert (left > 100) == (keeps and platform.libc_ver()[0] == "glibc")
