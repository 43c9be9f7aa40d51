"""Feature spaces on small files with random weights, against the libraries that made their layouts, and LPIPS against its formula."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pictures import photograph
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignbench.config import MissingAsset
from alignbench.features.base import FeatureSpace, squashed
from alignbench.features.clip import Clip
from alignbench.features.dinov2 import DinoV2
from alignbench.features.inception import RELEASE, Inception
from alignbench.features.lpips import Lpips
from alignbench.features.readings import Readings
from alignbench.features.sandbox_encoder import SandboxEncoder
from alignbench.rng import generator
from alignbench.worlds import scenes

SANDBOX = {"path": "package://models/sandbox", "revision": None, "time": 50}


def random(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under which images do not all look alike."""
    drawn = generator(0, "weights")
    return {
        key: torch.randn(each.shape, generator=drawn) * each[0].numel() ** -0.5 if each.ndim > 1 else each.clone()
        for key, each in parameters.items()
    }


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the released one's layout."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = library.FeatureExtractorInceptionV3("inception", ["2048"])
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(random(net.state_dict()), file)
    return file


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino")
    net = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14))
    net.load_state_dict(random(net.state_dict()))
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's AlexNet without the bulk of its classes."""
    from torchvision.models import alexnet

    file = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    layers = {f"features.{key}": each for key, each in alexnet(weights=None).features.state_dict().items()}
    torch.save(random(layers) | {"classifier.1.weight": torch.zeros(2, 2)}, file)
    return file


@pytest.fixture(scope="module")
def spaces(inception: Path, dino: Path, clip_folder: Path) -> dict[str, FeatureSpace]:
    return {
        "readings": Readings(),
        "sandbox_encoder": SandboxEncoder(**SANDBOX),
        "inception": Inception(path=str(inception), revision=None),
        "dinov2": DinoV2(path=str(dino), revision=None, size=28),
        "clip": Clip(path=str(clip_folder), revision=None),
    }


def drawn(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scenes and their attributes."""
    picked = torch.randperm(3360, generator=generator(seed, "scenes"))[:count].tolist()
    there = [scenes.all_scenes()[index] for index in picked]
    return scenes.draw(there, generator(seed, "scenes", 1)), torch.tensor([each.indices for each in there])


NAMES = ("readings", "sandbox_encoder", "inception", "dinov2", "clip")


@pytest.mark.parametrize("name", NAMES)
def test_a_space_is_frozen_and_sees_each_image_by_itself(spaces: dict[str, FeatureSpace], name: str) -> None:
    space, images = spaces[name], drawn(4)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as in a mixed-precision run
        together = space.train()(images.clone().requires_grad_(True))
    assert space.name == name and not space.training
    assert together.shape == (4, space.dimensions) and together.dtype == torch.float32 and not together.requires_grad
    assert not any(parameter.requires_grad for parameter in space.parameters())
    torch.testing.assert_close(together[2:3], space(images[2:3]), rtol=1e-4, atol=1e-5)
    assert torch.cdist(together, together)[~torch.eye(4, dtype=torch.bool)].min() > 1e-3
    torch.testing.assert_close(space(images.double()), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES[1:])
def test_any_size_will_do_and_other_weights_are_another_space(spaces: dict[str, FeatureSpace], name: str) -> None:
    space = spaces[name]
    large = torch.from_numpy(photograph(96, 70)).permute(2, 0, 1)[None].float() / 255
    assert space(large).shape == (1, space.dimensions)
    before = space.identity()
    assert before["name"] == name and len(before["weights"]) == 64
    parameter = next(space.parameters())
    parameter += 1e-3
    assert space.identity()["weights"] != before["weights"]
    parameter -= 1e-3


# --- one by one


def test_readings_are_what_the_exact_judge_measures() -> None:
    images = drawn(5)[0]
    assert torch.equal(Readings()(images), scenes.Reading.of(images).features)
    assert Readings().identity() == {"name": "readings", "settings": "", "weights": ""}
    with pytest.raises(ValueError, match="readings measures 32x32 scenes, not 64x32 images"):
        Readings()(torch.zeros(1, 3, 64, 32))


def test_the_sandboxs_encoder_knows_the_attributes(spaces: dict[str, FeatureSpace]) -> None:
    """A ridge regression to the attributes, on scenes that it was not fitted to: far above chance, 1/6, 1/8, 1/2, 1/5 and 1/8."""
    images, attributes = drawn(900)
    features = spaces["sandbox_encoder"](images).double()
    features = (features - features.mean(0)) / features.std(0)
    features = torch.cat([features, torch.ones(900, 1)], 1)
    fit, rest, right = features[:600], features[600:], []
    for wanted in attributes.unbind(1):
        weights = torch.linalg.solve(fit.T @ fit + torch.eye(fit.shape[1]), fit.T @ F.one_hot(wanted[:600]).double())
        right.append(((rest @ weights).argmax(1) == wanted[600:]).double().mean().item())
    assert all(found > bound for found, bound in zip(right, (0.38, 0.6, 0.95, 0.95, 0.95), strict=True)), right


def test_the_sandboxs_encoder_is_the_unets_middle(spaces: dict[str, FeatureSpace]) -> None:
    """Its output is where the way up begins: with it set to zero the UNet's output is another, with it unchanged the same."""
    from diffusers import StableDiffusionPipeline

    from alignbench.config import located

    images = drawn(2)[0]
    pipe = StableDiffusionPipeline.from_pretrained(located(SANDBOX["path"]))
    latent = pipe.vae.encode(images * 2 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    empty = pipe.encode_prompt("", "cpu", 1, False)[0].expand(2, -1, -1)
    taken: list[Tensor] = []
    pipe.unet.up_blocks[0].register_forward_pre_hook(lambda module, given, named: taken.append(named["hidden_states"]), with_kwargs=True)
    pipe.unet(pipe.scheduler.alphas_cumprod[50] ** 0.5 * latent, 50, empty)
    torch.testing.assert_close(spaces["sandbox_encoder"](images), taken[0].mean((2, 3)).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (96, 70), (400, 320)])
def test_inception_is_what_torchmetrics_takes(spaces: dict[str, FeatureSpace], inception: Path, shape: tuple[int, int]) -> None:
    from torchmetrics.image.fid import NoTrainInceptionV3

    pixels = torch.from_numpy(photograph(*shape)).permute(2, 0, 1)[None]
    theirs = NoTrainInceptionV3("inception", ["2048"], str(inception), antialias=False)(pixels)
    torch.testing.assert_close(spaces["inception"](pixels.float() / 255), theirs)


def test_squashed_is_pils_bicubic() -> None:
    """Away from black and white, where PIL cuts what overshoots after each pass."""
    for size in (28, 224):
        pixels = (photograph(96, 70) * 0.5 + 60).astype(np.uint8)
        theirs = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)) / 255
        ours = squashed(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255, size).clamp(0, 1)[0].permute(1, 2, 0).numpy()
        assert np.abs(ours - theirs).max() < 1.6 / 255  # PIL rounds after each of two passes
        assert np.abs(ours - theirs).mean() < 0.4 / 255


def test_dinov2_is_the_class_token_of_transformers(spaces: dict[str, FeatureSpace], dino: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Model

    pixels = photograph(56, 56)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    seen = BitImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False, image_mean=mean, image_std=std, resample=3)(
        Image.fromarray(pixels), return_tensors="pt"
    )
    theirs = Dinov2Model.from_pretrained(dino)(**seen).last_hidden_state[:, 0]
    ours = spaces["dinov2"](torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=0.05)
    assert theirs.abs().max() > 0.5
    with pytest.raises(ValueError, match="size=30 must be a multiple of its patches' 14"):
        DinoV2(path=str(dino), revision=None, size=30)


def test_clip_is_transformers_embedding_of_the_squashed_image(spaces: dict[str, FeatureSpace], clip_folder: Path) -> None:
    from transformers import CLIPModel

    image = torch.from_numpy(photograph(96, 70)).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    seen = (F.interpolate(image, (32, 32), mode="bicubic", antialias=True) - mean) / std
    theirs = CLIPModel.from_pretrained(clip_folder).get_image_features(pixel_values=seen).pooler_output.detach()
    ours = spaces["clip"](image)
    torch.testing.assert_close(ours, theirs / theirs.norm(), rtol=1e-4, atol=1e-6)
    assert ours.norm().item() == pytest.approx(1, abs=1e-6)


def test_clip_reads_either_file_of_a_folder(spaces: dict[str, FeatureSpace], clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    torch.save(load_file(clip_folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    assert Clip(path=str(tmp_path), revision=None).identity()["weights"] == spaces["clip"].identity()["weights"]


def test_lpips_is_the_papers_formula(alexnet: Path) -> None:
    """Sum over five layers of the mean over places of w . (difference of unit channel vectors)^2, on inputs shifted and scaled."""
    from torchvision.models import alexnet as network

    one, other = (torch.rand(3, 3, 64, 48, generator=generator(i, "images")) for i in range(2))
    lpips = Lpips(path=str(alexnet), revision=None)
    layers = network(weights=None).features.eval()
    weights = {key.removeprefix("features."): each for key, each in torch.load(alexnet).items() if key.startswith("features.")}
    layers.load_state_dict(weights)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188])[:, None, None], torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    states = [((each * 255).round() / 255 * 2 - 1 - shift) / scale for each in (one, other)]
    total = torch.zeros(3)
    linear = {key.removeprefix("net."): each for key, each in lpips.state_dict().items()}
    with torch.no_grad():
        for index, layer in enumerate(layers[:12]):
            states = [layer(each) for each in states]
            if index in (1, 4, 7, 9, 11):
                units = [each / (each.square().sum(1, keepdim=True) + 1e-8).sqrt() for each in states]
                number = (1, 4, 7, 9, 11).index(index)
                total += F.conv2d((units[0] - units[1]).square(), linear[f"lin{number}.model.1.weight"]).mean((1, 2, 3))
    torch.testing.assert_close(lpips(one, other), total, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(lpips(one, other), lpips(other, one))
    assert lpips(one, one).tolist() == [0, 0, 0] and total.min() > 0.01
    assert lpips.train()(one, other).tolist() == lpips(one, other).tolist()  # no dropout wakes
    assert len(lpips.identity()["weights"]) == 64
    assert lpips(one[:1, :, :32, :32], other[:1, :, :32, :32]).shape == (1,)


# --- what is not here, or not it


class Runs:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("import builtins; builtins.ran = True",)


MISSING = {
    "inception": (lambda path: Inception(path=path, revision=None), RELEASE),
    "lpips": (lambda path: Lpips(path=path, revision=None), "download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
    "dinov2": (lambda path: DinoV2(path=path, revision=None, size=28), "hf download facebook/dinov2-large"),
    "clip": (lambda path: Clip(path=path, revision=None), "hf download openai/clip-vit-large-patch14-336"),
    "sandbox_encoder": (lambda path: SandboxEncoder(path=path, revision=None, time=50), "Stable Diffusion pipeline"),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_not_here_says_what_to_fetch(name: str, tmp_path: Path) -> None:
    make, remedy = MISSING[name]
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(MissingAsset, match=r"^eval\.[^\n]*$") as raised:
            make(str(path))
        assert remedy in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize("name", ["inception", "lpips"])
def test_a_files_code_is_not_run_and_other_weights_are_refused(name: str, tmp_path: Path, alexnet: Path) -> None:
    import builtins

    make, file = MISSING[name][0], tmp_path / "file.pth"
    file.write_bytes(pickle.dumps({"features.0.weight": Runs()}))
    with pytest.raises(MissingAsset, match="weights alone"):
        make(str(file))
    assert not hasattr(builtins, "ran")
    torch.save({"features.0.weight": torch.zeros(2)}, file)
    with pytest.raises(MissingAsset, match=r"features\.|other layers|Error"):
        make(str(file))
    weights = torch.load(alexnet)
    torch.save(weights | {"features.0.bias": torch.zeros(3)}, file)
    with pytest.raises(MissingAsset):
        make(str(file))


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_a_folder_with_too_few_weights_is_refused(name: str, dino: Path, clip_folder: Path, tmp_path: Path) -> None:
    source = {"dinov2": dino, "clip": clip_folder}[name]
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = load_file(source / "model.safetensors")
    lost = next(key for key in weights if "layer" in key and not key.startswith("text"))
    save_file({key: each for key, each in weights.items() if key != lost}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MissingAsset, match="missing"):
        MISSING[name][0](str(tmp_path))
