"""What the tests share: small worlds, and no network."""

import json
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from alignbench.check import read_choice
from alignbench.config import choices, conf_folder
from alignbench.models.base import Spec
from alignbench.models.gaussian_world import GaussianWorld
from alignbench.policy import Policy
from alignbench.samplers.ddim import DDIM

torch.set_num_threads(1)  # the fastest for models this small, and test processes share the cores

FULL = Spec("full", 4, 4.0, ("to_q", "to_k", "to_v", "to_out.0"))
SANDBOX = "package://models/sandbox"
LORA = Spec("lora", 4, 4.0, ("to_q", "to_k", "to_v", "to_out.0"))


MODELS = choices("model", conf_folder())
METHODS = {"multi_step": "ddpo", "few_step": "pso", "one_step": "di_star"}
MORE = {
    "d3po_human": ["method.path=labels"],
    "d3po_human@sandbox": ["method.path=labels"],
    "pxpo_human": ["method.path=labels"],
    "pxpo_human@sandbox": ["method.path=labels"],
    "diffusion_dpo@sd15": ["method.pairs.path=pairs.parquet"],
    "diffusion_dpo@sdxl": ["method.pairs.path=pairs.parquet"],
    "remote": ["reward.url=http://127.0.0.1:8765"],
    "worker": ["reward.script=judge.py", "reward.requirements=numpy.txt"],
    "parity": ["reward.groups=[a cat,a dog]"],
    "human": ["reward.path=labels"],
    "heat_map": ["reward.path=heat.png"],
    "prompts": ["dataset.path=prompts.txt"],
    "prompt_files": ["dataset.train=train.txt", "dataset.validation=validation.txt", "dataset.test=test.txt"],
    "hub_prompts": ["dataset.repository=someone/prompts", "dataset.files=[prompts.txt]"],
}  # no default
FITTING = {"score": "scene_judge", "map": "colour", "gradient": "colour"}


def yaml_of(group: str, choice: str) -> dict[str, Any]:
    return read_choice(group, choice, conf_folder())


def reward_for(method: str) -> str:
    return FITTING[yaml_of("method", method).get("needs", "score")]


def fitting(group: str, choice: str) -> list[str]:
    """Words for a choice with the first others that it goes with. A recipe goes with its own pair; else `epochs` is nobody's to say."""
    if group == "recipe" and "@" in choice:
        method, model = choice.split("@")
        return [f"method={method}", f"model={model}", f"reward={reward_for(method)}", *MORE.get(choice, [])]
    if group == "experiment":  # it says what goes with it
        return [f"experiment={choice}"]
    words = {"method": "ddpo", "model": "sandbox", "reward": "scene_judge", group: choice}
    if group == "method":
        track = yaml_of("method", choice)["track"]
        words["model"] = next(each for each in ("sandbox", *MODELS) if track == "any" or track in yaml_of("model", each)["tracks"])
        words["reward"] = reward_for(choice)
    if group == "model":
        words["method"] = METHODS[next(iter(yaml_of("model", choice)["tracks"]))]
        words["reward"] = reward_for(words["method"])
    if group == "sampler" and choice != "auto":
        words |= next(
            {"model": model, "method": METHODS[track], "reward": reward_for(METHODS[track])}
            for model in ("gaussian", "sandbox", *MODELS)
            for track, facts in yaml_of("model", model)["tracks"].items()
            if choice in facts["samplers"] and track in METHODS
        )
    untrained = yaml_of("method", words["method"]).get("trains") is False
    return [*(f"{key}={value}" for key, value in words.items()), *([] if untrained else ["epochs=1"]), *MORE.get(choice, [])]


@pytest.fixture
def world() -> GaussianWorld:
    """Gaussian data N(0.5, 0.7^2) in 4 dimensions, in float64, with a copy named `policy`."""
    model = GaussianWorld(shape=(1, 2, 2), mean=0.5, std=0.7).double()
    model.grow("policy", FULL)
    return model


@pytest.fixture
def policy(world: GaussianWorld) -> Policy:
    return Policy(world, DDIM(steps=4, eta=1.0, guidance=1.0, deterministic=0), "policy", chunk=64)


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small Stable Diffusion XL pipeline with random weights."""
    import tiny_sdxl  # here: a copy of this file alone works

    folder = tmp_path_factory.mktemp("sdxl")
    tiny_sdxl.build(folder)
    return folder


@pytest.fixture(scope="session")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of tiny PixArt pipelines with random weights: `alpha` and `sigma`."""
    import tiny_pixart

    root = tmp_path_factory.mktemp("pixart")
    tiny_pixart.build(root / "alpha")
    tiny_pixart.build_sigma(root / "sigma")
    return {name: root / name for name in ("alpha", "sigma")}


@pytest.fixture(scope="session")
def flow_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small pipeline with random weights for each flow-matching family, by its name."""
    from tiny_flow import build_flux, build_sd3

    folder = tmp_path_factory.mktemp("flow")
    return {"sd3": build_sd3(folder / "sd3"), "flux": build_flux(folder / "flux")}


@pytest.fixture(scope="session")
def stand_ins(pixart: dict[str, Path], flow_folders: dict[str, Path], sdxl: Path) -> dict[str, list[str]]:
    """Words that put a small local pipeline in a model's place: the same loading code, without the download. By model."""
    here, leading, xl = f"model.path={SANDBOX}", "model.schedule.timestep_spacing=leading", f"model.path={sdxl}"
    xl_init = f"model.init={sdxl}/unet:diffusion_pytorch_model.safetensors"
    return {
        "sd14": [here],
        "sd15": [here],
        "sd15_one_step": [here],
        "sd21": [here, "model.schedule.prediction_type=epsilon"],
        "sd_turbo": [here, leading],
        "sdxl": [xl],
        "sdxl_turbo": [xl, leading],
        **{model: [xl, xl_init] for model in ("di_star_sdxl", "sdxl_dmd2", "sdxl_dmd2_one_step", "sdxl_lcm")},
        "pixart_alpha": [f"model.path={pixart['alpha']}"],
        "pixart_sigma": [f"model.path={pixart['sigma']}"],
        "sd35_medium": [f"model.path={flow_folders['sd3']}", "model.pixels=16"],
        "flux_dev": [f"model.path={flow_folders['flux']}", "model.pixels=16"],
    }


@pytest.fixture(scope="session")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small SegFormer with random weights and four classes."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    folder, names = tmp_path_factory.mktemp("segformer"), dict(enumerate(["wall", "floor, flooring", "red", "circle"]))
    numbers = {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}
    net = SegformerForSemanticSegmentation(SegformerConfig(**numbers, id2label=names, label2id={name: i for i, name in names.items()}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in net.parameters():  # at its own initial scale all classes are equally likely everywhere
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    net.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small CLIP with random weights for images of 32x32 pixels, and a vocabulary of bytes."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip_folder")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]  # how GPT-2's vocabulary writes a byte
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CLIPModel(CLIPConfig(projection_dim=8, text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}))
        for parameter in net.parameters():  # at its own initial scale all images look alike
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ImageReward.pt of a small network with random weights, and a vocabulary for it."""
    import imagereward_file  # here: a copy of this file alone works

    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(imagereward_file.weights(), folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(imagereward_file.WORDS) + "\n")
    return folder


@pytest.fixture(scope="session")
def clip_judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Words that put small files in the place of those that a judge of CLIP's family names, by choice."""
    import judges  # here: a copy of this file alone works

    return judges.stand_ins(tmp_path_factory.mktemp("clip_judges"))


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a small LLaVA and of two small text encoders with random weights: `llava`, `bert` and `deberta`."""
    import tiny_vlm

    root = tmp_path_factory.mktemp("seeing")
    tiny_vlm.build(root / "llava")
    tiny_vlm.build_scorer(root / "bert")
    tiny_vlm.build_deberta(root / "deberta")
    return {name: root / name for name in ("llava", "bert", "deberta")}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `step` shows that step of the family that its parameter or its file names."""
    for mark in item.iter_markers("step"):
        given = getattr(item, "callspec", None)
        own = [value for name, value in given.params.items() if name in ("kind", "family")] if given else []
        family = "_".join([item.path.stem.removeprefix("test_"), *own]).removeprefix("flow_")
        item.user_properties.append(("family", (family, mark.args[0])))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A table, family x step = ok, of tests marked `step` and of tests/test_families.py."""
    passed = [value for report in terminalreporter.stats.get("passed", []) for key, value in report.user_properties if key == "family"]
    if not passed:
        return
    steps = list(dict.fromkeys(step for _, step in passed))
    terminalreporter.write_line("")
    terminalreporter.write_line(f"{'family':<22}" + "".join(f"{step:>18}" for step in steps))
    for family in dict.fromkeys(family for family, _ in passed):
        terminalreporter.write_line(
            f"{family:<22}" + "".join(f"{'ok' if (family, step) in map(tuple, passed) else '-':>18}" for step in steps)
        )
