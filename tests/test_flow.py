"""Flow-matching models against diffusers' own pipelines: schedule, velocity, images, adapters and exports."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FULL, LORA
from diffusers import DiffusionPipeline, FluxTransformer2DModel, SD3Transformer2DModel
from tiny_flow import PIXELS, build_flux
from torch import Tensor

from alignbench.models.base import Spec
from alignbench.models.flow import FlowPipeline
from alignbench.models.flux import Flux
from alignbench.models.stable_diffusion_3 import StableDiffusion3
from alignbench.policy import Policy
from alignbench.rng import Draws, generator
from alignbench.samplers.flow_sde import FlowSDE
from alignbench.samplers.one_step import OneStep

PROMPTS = ["a small red circle at the left on a blue background", "a large white ring in the centre on a green background"]
FAMILIES = ("sd3", "flux")
GUIDED = [(family, guidance) for family in FAMILIES for guidance in (1.0, 3.0)]
EMBEDDED = 2.5
STEPS = 5


def a_model(family: str, folders: dict[str, Path], spec: Spec | None = None, perturb: bool = False, **more: Any) -> FlowPipeline:
    arguments: dict[str, Any] = {
        "path": str(folders[family]),
        "revision": None,
        "init": None,
        "gated": True,
        "dtype": "float32",
        "pixels": PIXELS,
        "schedule": {"shift": 3.0, "use_dynamic_shifting": family == "flux"},
    }
    arguments |= more
    model = StableDiffusion3(**arguments) if family == "sd3" else Flux(**{"embedded_guidance": EMBEDDED, **arguments})
    if spec:
        model.grow("policy", spec)
        if perturb:  # as if it had been trained
            noise = generator(0, "perturb")
            for parameter in model.trainable("policy").values():
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=noise)
    return model


def noise(model: FlowPipeline) -> Tensor:
    return torch.randn(2, *model.shape, generator=generator(0, "x"))


def pipeline(family: str, folders: dict[str, Path]) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folders[family])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generated(pipe: Any, family: str, x: Tensor, guidance: float) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """The pipeline's own images [B,3,H,W], and the (latents, sigma, guided velocity) that its scheduler was given at each step."""
    calls, step = [], pipe.scheduler.step

    def unpacked(value: Tensor) -> Tensor:
        return value.clone() if family == "sd3" else pipe._unpack_latents(value, PIXELS, PIXELS, pipe.vae_scale_factor)

    def recording(velocity: Tensor, t: Tensor, latents: Tensor, **more: Any) -> Any:
        calls.append((unpacked(latents), t / 1000, unpacked(velocity)))
        return step(velocity, t, latents, **more)

    pipe.scheduler.step = recording
    words: dict[str, Any] = {"guidance_scale": guidance, "latents": x}
    if family == "flux":
        words = {"guidance_scale": EMBEDDED, "true_cfg_scale": guidance, "negative_prompt": [""] * len(PROMPTS)}
        words["latents"] = pipe._pack_latents(x, *x.shape)
    images = pipe(PROMPTS, height=PIXELS, width=PIXELS, num_inference_steps=STEPS, output_type="pt", **words).images
    return images, calls


def sampled(model: FlowPipeline, who: str | None, x: Tensor, guidance: float) -> Tensor:
    policy = Policy(model, FlowSDE(steps=STEPS, noise=0.0, guidance=guidance, deterministic=0), who, chunk=8)
    return policy.images(policy.rollout(PROMPTS, "image", Draws(0, 0).each("r", range(2)), x=x))


@pytest.mark.step("guided eps")
@pytest.mark.step("rollout")
@pytest.mark.parametrize("family, guidance", GUIDED)
def test_velocity_and_image_are_the_pipelines_own(family: str, guidance: float, flow_folders: dict[str, Path]) -> None:
    model = a_model(family, flow_folders)
    images, calls = generated(pipeline(family, flow_folders), family, noise(model), guidance)
    cond = model.encode(PROMPTS)
    assert len(calls) == STEPS
    with torch.no_grad():
        for latents, sigma, velocity in calls:
            torch.testing.assert_close(model.output(latents, sigma.expand(2), cond, None, guidance), velocity, rtol=0, atol=1e-5)
    torch.testing.assert_close(sampled(model, None, noise(model), guidance), images, rtol=0, atol=1e-4)
    assert (images[0] - images[1]).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_follows_each_part_of_the_condition(family: str, flow_folders: dict[str, Path]) -> None:
    """A test against a pipeline whose network ignored its inputs would see nothing."""
    model = a_model(family, flow_folders)
    x, t, cond = noise(model), torch.tensor([0.3, 0.9]), model.encode(PROMPTS)
    velocity = model.output(x, t, cond, None, None)
    tokens, pooled = cond.clone(), cond.clone()
    tokens[:, :-2] *= -1
    pooled[:, -1, 0] += 1
    padding = cond.clone()
    padding[:, -1, 8:] += 1  # 40 numbers are a row of 32 and 8 of the next
    for changed in (
        model.output(x, t, tokens, None, None),
        model.output(x, t, pooled, None, None),
        model.output(x, t - 0.1, cond, None, None),
    ):
        assert (changed - velocity).abs().max() > 1e-3
    assert torch.equal(model.output(x, t, padding, None, None), velocity)


@pytest.mark.parametrize("family", FAMILIES)
def test_times_are_the_schedulers(family: str, flow_folders: dict[str, Path]) -> None:
    model = a_model(family, flow_folders)
    times = model.times(10)
    assert times.shape == (11,)
    assert (times[0], times[-1]) == (1, 0)
    assert (times.diff() < 0).all()
    t = torch.tensor([0, 624, 999])
    raw = (t + 1) / 1000
    odds = torch.exp(torch.tensor(0.5 - 240 * 0.65 / 3840)) if family == "flux" else torch.tensor(3.0)  # mu at 4x4 tokens; shift
    alpha, sigma = model.alpha_sigma(t)
    torch.testing.assert_close(sigma.flatten(), odds * raw / (1 + (odds - 1) * raw), rtol=0, atol=1e-6)
    torch.testing.assert_close(alpha, 1 - sigma)
    assert torch.equal(model.alpha_sigma(sigma.flatten())[1], sigma)  # a float is the flow time itself
    assert model.dtype == torch.float32
    assert model.double().dtype == torch.float64


@pytest.mark.step("copies")
@pytest.mark.parametrize("spec", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_the_untouched_base_bit_for_bit(family: str, spec: Spec, flow_folders: dict[str, Path]) -> None:
    model = a_model(family, flow_folders)
    x, t, cond = noise(model), torch.tensor([11, 701]), model.encode(PROMPTS)
    with torch.no_grad():
        expected = model.eps(x, t, cond, None, 3.0)
        model.grow("policy", spec)
        assert torch.equal(model.eps(x, t, cond, "policy", 3.0), expected)
        for parameter in model.trainable("policy").values():
            parameter.data += 0.05
        assert not torch.allclose(model.eps(x, t, cond, "policy", 3.0), expected, atol=1e-3)
        assert torch.equal(model.eps(x, t, cond, None, 3.0), expected)


@pytest.mark.step("export")
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_lora_reproduces_velocity_and_images(family: str, flow_folders: dict[str, Path], tmp_path: Path) -> None:
    model = a_model(family, flow_folders, LORA, perturb=True)
    model.export("policy", tmp_path, LORA)
    pipe = pipeline(family, flow_folders)
    plain, _ = generated(pipe, family, noise(model), 1.0)
    pipe.load_lora_weights(tmp_path)
    tuned, calls = generated(pipe, family, noise(model), 1.0)
    with torch.no_grad():
        for latents, sigma, velocity in calls:
            ours = model.output(latents, sigma.expand(2), model.encode(PROMPTS), "policy", None)
            torch.testing.assert_close(ours, velocity, rtol=0, atol=1e-5)
    torch.testing.assert_close(sampled(model, "policy", noise(model), 1.0), tuned, rtol=0, atol=1e-5)
    assert (plain - tuned).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_full_copy_loads_as_a_transformer(family: str, flow_folders: dict[str, Path], tmp_path: Path) -> None:
    model = a_model(family, flow_folders, FULL, perturb=True)
    model.export("policy", tmp_path, FULL)
    kind = SD3Transformer2DModel if family == "sd3" else FluxTransformer2DModel
    loaded = kind.from_pretrained(tmp_path / "transformer").state_dict()
    mine = model.trainable("policy")
    assert loaded.keys() >= mine.keys()
    assert all(torch.equal(loaded[name], value) for name, value in mine.items())


@pytest.mark.step("decode")
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_has_a_gradient_and_encoding_undoes_its_scale(family: str, flow_folders: dict[str, Path]) -> None:
    model = a_model(family, flow_folders)
    x = noise(model).requires_grad_(True)
    images = model.decode(x)
    assert images.shape == (2, 3, PIXELS, PIXELS)
    images.mean().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    vae = model.pipeline[0].vae
    mode = vae.encode(images.detach() * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(model.latents(images.detach()) / vae.config.scaling_factor + vae.config.shift_factor, mode)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_one_step_generator_starts_from_pure_noise(family: str, flow_folders: dict[str, Path]) -> None:
    model = a_model(family, flow_folders, LORA, perturb=True)
    for time in (0, 625, 999):
        x0 = OneStep(time=time, guidance=1.0).x0(model, noise(model), torch.zeros(2, dtype=torch.long), model.encode(PROMPTS), "policy")
        assert x0.isfinite().all()
    x0.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.trainable("policy").values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_log_ratio_is_zero(family: str, flow_folders: dict[str, Path]) -> None:
    model = a_model(family, flow_folders, LORA, perturb=True)
    policy = Policy(model, FlowSDE(steps=4, noise=0.7, guidance=2.0, deterministic=1), "policy", chunk=4)
    rollout = policy.rollout(PROMPTS * 2, "image", Draws(0, 0).each("r", range(4)))
    rows = rollout.steps(torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1]), torch.ones(4))
    with torch.no_grad():
        assert (policy.log_ratio(rows, "image") / policy.dimensions).abs().max() <= 1e-5
    assert policy.path_kl(rollout).min() > 0
    assert policy.trained_steps.tolist() == [True, True, True, False]


def test_sizes_are_checked_and_default_to_the_pipelines_own(flow_folders: dict[str, Path]) -> None:
    assert a_model("sd3", flow_folders, pixels=None).shape == (16, 16, 16)
    assert a_model("flux", flow_folders, pixels=None).shape == (16, 128, 128)
    for family in FAMILIES:
        with pytest.raises(ValueError, match=r"model\.pixels=18.*multiples of 4 pixels"):
            a_model(family, flow_folders, pixels=18)
        small, large = (a_model(family, flow_folders, pixels=pixels) for pixels in (PIXELS, 2 * PIXELS))
        before = small.sigmas
        with small.sized(2 * PIXELS):  # as if it had been made for that size: FLUX's schedule is another there
            assert small.shape == large.shape
            assert torch.equal(small.sigmas, large.sigmas)
            assert torch.equal(small.times(4), large.times(4))
        assert torch.equal(small.sigmas, before)
        assert torch.equal(small.sigmas, large.sigmas) is (family == "sd3")


def test_embedded_guidance_goes_with_the_network(flow_folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="distilled for guidance"):
        a_model("flux", flow_folders, embedded_guidance=None)
    plain = {"flux": build_flux(tmp_path / "plain", distilled=False)}
    with pytest.raises(ValueError, match="takes no guidance scale"):
        a_model("flux", plain)
    model, told = a_model("flux", plain, embedded_guidance=None), [a_model("flux", flow_folders, embedded_guidance=g) for g in (1.0, 6.0)]
    x, t, cond = noise(told[0]), torch.tensor([0.5, 1.0]), told[0].encode(PROMPTS)
    assert (told[0].output(x, t, cond, None, None) - told[1].output(x, t, cond, None, None)).abs().max() > 1e-3
    assert model.output(noise(model), torch.tensor([0.5, 1.0]), model.encode(PROMPTS), None, None).isfinite().all()


def test_in_16_bits_the_networks_are_and_the_rest_is_not(flow_folders: dict[str, Path]) -> None:
    for family in FAMILIES:
        model = a_model(family, flow_folders, LORA, dtype="bfloat16")
        assert {value.dtype for value in model.trainable("policy").values()} == {torch.float32}
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model.output(noise(model), torch.tensor([0.5, 1.0]), model.encode(PROMPTS), "policy", 2.0)
        assert (velocity.dtype, model.dtype, model.vae.dtype) == (torch.float32,) * 3
        exact = a_model(family, flow_folders)
        gap = velocity - exact.output(noise(exact), torch.tensor([0.5, 1.0]), exact.encode(PROMPTS), None, 2.0)
        assert gap.abs().mean() < 0.1
