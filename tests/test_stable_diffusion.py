"""The pipeline's Diffusion: against diffusers' own pipeline, adapters that leave the base untouched, exports that others can load."""

from pathlib import Path

import pytest
import torch
from conftest import FULL, LORA, SANDBOX
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from alignbench.config import MissingAsset, located
from alignbench.models.base import Spec
from alignbench.models.stable_diffusion import StableDiffusion
from alignbench.models.stable_diffusion_xl import StableDiffusionXL
from alignbench.policy import Policy, summed
from alignbench.rng import Draws, generator
from alignbench.samplers.ddim import DDIM

PROMPTS = ["a small red circle at the left on a blue background", "a large white ring in the centre on a green background"]


def a_model(spec: Spec | None = None, perturb: bool = False, pixels: int | None = None) -> StableDiffusion:
    model = StableDiffusion(path=SANDBOX, revision=None, init=None, gated=False, dtype="float32", schedule={}, pixels=pixels)
    if spec:
        model.grow("policy", spec)
        if perturb:  # as if it had been trained
            noise = generator(0, "perturb")
            for parameter in model.trainable("policy").values():
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=noise)
    return model


def inputs(model: StableDiffusion) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(2, *model.shape, generator=generator(0, "x")), torch.tensor([11, 701]), model.encode(PROMPTS)


def pipeline() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(located(SANDBOX))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.step("copies")
@pytest.mark.parametrize("spec", [LORA, FULL], ids=["lora", "full"])
def test_the_reference_is_the_untouched_base_bit_for_bit(spec: Spec) -> None:
    untouched = a_model()
    x, t, cond = inputs(untouched)
    expected = untouched.eps(x, t, cond, None, guidance=3.0)
    model = a_model(spec)
    assert torch.equal(model.eps(x, t, cond, "policy", guidance=3.0), expected)  # a fresh copy is the reference
    for parameter in model.trainable("policy").values():
        parameter.data += 0.05
    assert not torch.allclose(model.eps(x, t, cond, "policy", guidance=3.0), expected, atol=1e-3)
    assert torch.equal(model.eps(x, t, cond, None, guidance=3.0), expected)


def test_only_the_copy_is_trained_and_switching_keeps_it_so() -> None:
    model = a_model(LORA)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    x, t, cond = inputs(model)
    model.eps(x, t, cond, None)
    model.eps(x, t, cond, "policy").sum().backward()
    assert names == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in names)
    assert len(names) == len(model.trainable("policy"))
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} <= names


def test_lora_keeps_one_set_of_base_weights() -> None:
    model = a_model(LORA)
    base = sum(parameter.numel() for parameter in a_model().denoiser.parameters())
    adapter = sum(parameter.numel() for parameter in model.trainable("policy").values())
    assert sum(parameter.numel() for parameter in model.denoiser.parameters()) == base + adapter
    assert not model.copies


def test_frozen_lets_gradients_through_but_not_in() -> None:
    model = a_model(FULL)
    x, t, cond = inputs(model)
    x.requires_grad_(True)
    with model.frozen("policy"):
        model.eps(x, t, cond, "policy").square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.trainable("policy").values())
    assert all(parameter.requires_grad for parameter in model.trainable("policy").values())


@pytest.mark.step("guided eps")
def test_guided_noise_is_the_pipelines_own() -> None:
    model, pipe, seen = a_model(), pipeline(), []
    own = pipe.scheduler.step

    def step(noise: torch.Tensor, t: torch.Tensor, x: torch.Tensor, **more: object) -> object:
        seen.append((noise, t, x))
        return own(noise, t, x, **more)

    pipe.scheduler.step = step
    pipe(PROMPTS, num_inference_steps=3, guidance_scale=3.0, latents=torch.randn(2, *model.shape, generator=generator(0, "x")))
    assert len(seen) == 3
    for noise, t, x in seen:
        torch.testing.assert_close(model.eps(x, t.expand(2), model.encode(PROMPTS), None, guidance=3.0), noise, rtol=0, atol=1e-5)


@pytest.mark.step("rollout")
@pytest.mark.parametrize("pixels", [None, 16, 20, 64])
def test_a_deterministic_rollout_is_the_pipelines_own_image(pixels: int | None) -> None:
    """Of any size that the VAE makes: 20 pixels are 5 of the latent's, which the UNet cannot halve evenly."""
    model, pipe = a_model(pixels=pixels), pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    policy = Policy(model, DDIM(steps=6, eta=0.0, guidance=3.0, deterministic=0), None, chunk=8)
    x = torch.randn(2, *model.shape, generator=generator(0, "x"))
    ours = policy.images(policy.rollout(PROMPTS, "image", Draws(0, 0).each("r", range(2)), x=x))
    theirs = pipe(PROMPTS, num_inference_steps=6, guidance_scale=3.0, latents=x, output_type="pt").images
    assert ours.shape[2:] == (pixels or 32, pixels or 32)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_prompts_are_embedded_once_each() -> None:
    model = a_model()
    calls: list[int] = []
    embed = model.embed
    model.embed = lambda prompts: (calls.append(len(prompts)), embed(prompts))[1]  # type: ignore[method-assign]
    first = model.encode([*PROMPTS, *PROMPTS])
    model.encode(PROMPTS)
    assert calls == [2]
    torch.testing.assert_close(first[:2], first[2:], rtol=0, atol=0)


def test_images_do_not_depend_on_the_batch_they_are_made_in() -> None:
    model = a_model()
    prompts, draws = PROMPTS * 3, Draws(0, 0)
    images = []
    for chunk in (6, 2):
        policy = Policy(model, DDIM(steps=3, eta=1.0, guidance=3.0, deterministic=0), None, chunk=chunk)
        images.append(policy.images(policy.rollout(prompts, "image", draws.each("r", range(6)))))
    torch.testing.assert_close(*images, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("bf16", "worst", "average"), [(False, 1e-5, 1e-5), (True, 1.0, 1e-3)], ids=["fp32", "bf16-mixed"])
@pytest.mark.parametrize("spec", [LORA, FULL], ids=["lora", "full"])
def test_the_first_log_ratio_is_zero_where_rows_mix_steps(spec: Spec, bf16: bool, worst: float, average: float) -> None:
    """The rollout's log-probabilities against ones computed anew in minibatches of another shape, means over the latent's dimensions."""
    model, images, steps = a_model(spec, perturb=True), 4, 3
    policy = Policy(model, DDIM(steps=steps, eta=1.0, guidance=3.0, deterministic=0), "policy", chunk=images)

    def gaps(in_bf16: bool) -> torch.Tensor:
        found = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            for part in torch.randperm(images * steps, generator=generator(0, "order")).split(3):
                rows = rollout.steps(part // steps, part % steps, torch.ones(images))
                step = policy.at(rows)
                assert step.mean.dtype == torch.float32
                found.append((summed(step.log_prob(rows.y), "image") - rows.log_prob) / policy.dimensions)
        return torch.cat(found).abs()

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        rollout = policy.rollout(PROMPTS * 2, "image", Draws(0, 0).each("r", range(images)))
    assert gaps(bf16).max() <= worst
    assert gaps(bf16).mean() <= average
    assert gaps(not bf16).mean() > average  # a rollout in another precision than the update is seen


WIDE = Spec("lora", 4, 8.0, (*LORA.targets, "proj_in", "ff.net.0.proj"))  # layers that are no attention beside those that are


@pytest.mark.step("export")
@pytest.mark.parametrize("spec", [LORA, WIDE], ids=["attention", "wide"])
def test_an_exported_lora_reproduces_the_images_in_plain_diffusers(spec: Spec, tmp_path: Path) -> None:
    model = a_model(spec, perturb=True)
    policy = Policy(model, DDIM(steps=5, eta=0.0, guidance=3.0, deterministic=0), "policy", chunk=8)
    x = torch.randn(2, *model.shape, generator=generator(0, "x"))
    ours = policy.images(policy.rollout(PROMPTS, "image", Draws(0, 0).each("r", range(2)), x=x))
    model.export("policy", tmp_path, spec)

    pipe = pipeline()
    plain = pipe(PROMPTS, num_inference_steps=5, guidance_scale=3.0, latents=x, output_type="pt").images
    pipe.load_lora_weights(tmp_path)
    tuned = pipe(PROMPTS, num_inference_steps=5, guidance_scale=3.0, latents=x, output_type="pt").images
    torch.testing.assert_close(ours, tuned, rtol=0, atol=1e-5)
    assert (plain - tuned).abs().max() > 0.01


def test_an_exported_full_copy_loads_as_a_unet(tmp_path: Path) -> None:
    model = a_model(FULL, perturb=True)
    model.export("policy", tmp_path, FULL)
    x, t, cond = inputs(model)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet").eval()
    with torch.no_grad():
        assert torch.equal(unet(x, t, encoder_hidden_states=cond).sample, model.eps(x, t, cond, "policy"))


@pytest.mark.step("decode")
def test_decoding_is_differentiable() -> None:
    model = a_model()
    x = torch.randn(1, *model.shape, generator=generator(0, "x")).requires_grad_(True)
    images = model.decode(x)
    assert images[0].is_contiguous()  # of whatever layout the VAE has worked in: what reads an image's bytes wants them in order
    images.mean().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_a_missing_pipeline_says_how_to_get_it() -> None:
    with pytest.raises(MissingAsset, match=r"model\.path=nobody/nothing.*hf download nobody/nothing"):
        StableDiffusion(path="nobody/nothing", revision=None, init=None, gated=False, dtype="float32", schedule={})


@pytest.mark.parametrize("spec", [LORA, FULL], ids=["lora", "full"])
def test_one_weight_that_differs_is_a_copy_that_has_moved(spec: Spec) -> None:
    """But for an adapter's A, which is random and does nothing while B is 0."""
    model = a_model(spec)
    assert not model.moved("policy")
    name, last = list(model.trainable("policy").items())[-1]
    assert spec is FULL or "lora_B" in name
    last.data.flatten()[-1] += 1e-4
    assert model.moved("policy")


def test_two_adapters_live_on_one_base() -> None:
    model = a_model(LORA, perturb=True)
    x, t, cond = inputs(model)
    with torch.no_grad():
        expected = model.eps(x, t, cond, "policy")
        model.grow("critic", LORA)
        assert torch.equal(model.eps(x, t, cond, "policy"), expected)
        assert torch.equal(model.eps(x, t, cond, "critic"), model.eps(x, t, cond, None))
    assert all(parameter.requires_grad for who in ("policy", "critic") for parameter in model.trainable(who).values())
    with pytest.raises(KeyError, match="other"):
        model.eps(x, t, cond, "other")
    with pytest.raises(ValueError, match="before any adapter"):
        model.grow("whole", FULL)


@pytest.mark.parametrize(
    "path, error, said",
    [
        ("/nowhere/at/all", MissingAsset, "name a folder that a pipeline was saved to"),
        ("package://models/sandbox_four_step", MissingAsset, "no pipeline there"),
        ("package://models/sandbox", ValueError, "a StableDiffusionPipeline, and this model is a StableDiffusionXLPipeline"),
    ],
)
def test_what_is_no_pipeline_of_this_family_is_refused_in_one_line(path: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as raised:
        StableDiffusionXL(path=path, revision=None, init=None, gated=False, dtype="float32", schedule={}, embedded_guidance=None)
    assert "\n" not in str(raised.value)
