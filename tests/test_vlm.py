"""A vision-language model as a judge, on a small LLaVA and a small BERT with random weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_vlm import CHAT, TEMPLATE
from torch import Tensor, nn
from torchmetrics.functional.text.bert import bert_score
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    DebertaConfig,
    DebertaModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from alignbench.__main__ import main
from alignbench.config import MissingAsset
from alignbench.rewards.base import Reward
from alignbench.rewards.bert_score import BertRecall
from alignbench.rewards.vlm import Vlm
from alignbench.rewards.vqa_score import VqaScore
from alignbench.rng import generator

FILE = "model.safetensors"
QUESTION, CHOICE = "What is happening in this image?", "Does this image show {prompt}? Answer yes or no."
PROMPTS = ["a red circle", "the small blue dog on the left", "circles", "a square", "the dog"]
TALK = "USER: <image>\nWhat is happening in this image? ASSISTANT:"


def vlm(
    folders: dict[str, Path],
    path: Path | str | None = None,
    scorer: Path | str | None = None,
    batch: int = 2,
    layer: int = 2,
    reference: str = "{prompt}",
) -> Vlm:
    return Vlm(
        path=str(path or folders["llava"]),
        revision=None,
        question=QUESTION,
        reference=reference,
        template=TEMPLATE,
        max_new_tokens=8,
        scorer=str(scorer or folders["bert"]),
        scorer_revision=None,
        layer=layer,
        batch=batch,
    )


def vqa(folders: dict[str, Path], path: Path | None = None, answer: str = "Yes", question: str = CHOICE, batch: int = 3) -> VqaScore:
    where = str(path or folders["llava"])
    return VqaScore(path=where, revision=None, question=question, template=TEMPLATE, answer=answer, opposite="No", batch=batch)


def images() -> Tensor:
    return torch.rand(5, 3, 40, 56, generator=generator(0, "images"))


def pictures() -> list[Image.Image]:
    return [Image.fromarray((each * 255).round().byte().permute(1, 2, 0).numpy()) for each in images()]


@pytest.mark.parametrize("make", [vlm, vqa])
def test_it_is_what_it_says(make: Callable[..., Reward], seeing: dict[str, Path]) -> None:
    reward, seen = make(seeing), images().requires_grad_(True)
    scores = reward(seen, PROMPTS)
    assert scores.shape == (5,)
    assert scores.dtype == torch.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores.std() > 0.01
    assert not scores.requires_grad
    assert not any(each.requires_grad or each.is_meta for each in reward.parameters())
    assert not any(each.training for each in reward.modules())
    with pytest.raises(ValueError, match="spatial reward"):
        reward.map(images(), PROMPTS)


@pytest.mark.parametrize("make", [vlm, vqa])
def test_an_image_scores_the_same_alone_and_in_any_batch(make: Callable[..., Reward], seeing: dict[str, Path]) -> None:
    reward, whole = make(seeing), make(seeing, batch=8)
    scores = reward(images(), PROMPTS)
    torch.testing.assert_close(whole(images(), PROMPTS), scores, rtol=0, atol=1e-5)
    alone = [reward(images()[i : i + 1], PROMPTS[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), scores, rtol=0, atol=1e-5)
    backwards = reward(images().flip(0), PROMPTS[::-1]).flip(0)
    torch.testing.assert_close(backwards, scores, rtol=0, atol=1e-5)


def test_answers_are_words_that_depend_on_the_image_alone(seeing: dict[str, Path]) -> None:
    reward = vlm(seeing)
    said = reward.answers(images())
    assert len(set(said)) == 5
    assert len({len(each.split()) for each in said}) > 1  # some ended early: a batch pads them
    assert not any("<" in each or each != each.strip() for each in said)
    reward(images(), PROMPTS)
    assert reward.said == said
    assert [reward.answers(images()[i : i + 1])[0] for i in range(5)] == said


@pytest.mark.parametrize("template", ["processor", "ours"])
def test_the_score_is_that_of_the_plain_libraries_image_by_image(template: str, seeing: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(seeing["llava"], tmp_path / "llava")
    if template == "ours":
        (folder / "chat_template.jinja").unlink()
    net = LlavaForConditionalGeneration.from_pretrained(seeing["llava"]).eval()
    processor, scores, said = LlavaProcessor.from_pretrained(seeing["llava"]), [], []
    for picture, prompt in zip(pictures(), PROMPTS, strict=True):
        inputs = processor(images=picture, text=TALK, return_tensors="pt")
        assert inputs.input_ids[0].tolist().count(1) == 1  # one start of text
        words = net.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs.input_ids.shape[1] :]
        said.append(processor.decode(words, skip_special_tokens=True).strip())
        recall = bert_score([said[-1]], [prompt], model_name_or_path=str(seeing["bert"]), num_layers=2, max_length=16)["recall"]
        scores.append(recall.item())
    reward = vlm(seeing, path=folder)
    torch.testing.assert_close(reward(images(), PROMPTS), torch.tensor(scores), rtol=0, atol=1e-5)
    assert reward.said == said
    assert reward.asked == TALK


def test_a_choice_is_that_of_a_plain_forward_pass(seeing: dict[str, Path]) -> None:
    net = LlavaForConditionalGeneration.from_pretrained(seeing["llava"]).eval()
    processor, expected = LlavaProcessor.from_pretrained(seeing["llava"]), []
    ids = processor.tokenizer.convert_tokens_to_ids(["▁Yes", "▁No"])
    for picture, prompt in zip(pictures(), PROMPTS, strict=True):
        text = f"USER: <image>\nDoes this image show {prompt}? Answer yes or no. ASSISTANT:"
        with torch.no_grad():
            logits = net(**processor(images=picture, text=text, return_tensors="pt")).logits[0, -1]
        likely = logits.softmax(0)[ids]
        expected.append(likely[0] / likely.sum())
    torch.testing.assert_close(vqa(seeing)(images(), PROMPTS), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_a_template_that_writes_the_start_of_text_gets_no_second(seeing: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(seeing["llava"], tmp_path / "llava")
    (folder / "chat_template.jinja").write_text("<s>" + CHAT)
    net, processor = LlavaForConditionalGeneration.from_pretrained(folder).eval(), LlavaProcessor.from_pretrained(folder)
    text = "<s>USER: <image>\nDoes this image show a dog? Answer yes or no. ASSISTANT:"
    inputs = processor(images=pictures()[0], text=text, add_special_tokens=False, return_tensors="pt")
    assert inputs.input_ids[0].tolist().count(1) == 1
    with torch.no_grad():
        likely = net(**inputs).logits[0, -1, processor.tokenizer.convert_tokens_to_ids(["▁Yes", "▁No"])].softmax(0)
    torch.testing.assert_close(vqa(seeing, path=folder)(images()[:1], ["a dog"]), likely[:1], rtol=1e-4, atol=1e-6)


def test_a_choice_is_the_same_in_any_precision_of_training(seeing: dict[str, Path]) -> None:
    reward = vqa(seeing)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = reward(images(), PROMPTS)
    assert torch.equal(mixed, reward(images(), PROMPTS))


def test_files_load_by_the_names_of_the_published_ones(seeing: dict[str, Path], tmp_path: Path) -> None:
    """LLaVA 1.5's parts, and CLIP's eye with the prefix that transformers has since dropped; half precision stays half."""
    folder = shutil.copytree(seeing["llava"], tmp_path / "llava")
    weights = {name.replace("vision_tower.", "vision_tower.vision_model."): each for name, each in load_file(folder / FILE).items()}
    assert {name.rpartition(".layers.")[0] or name.rpartition(".")[0] for name in weights} == {
        "language_model.lm_head",
        "language_model.model",
        "language_model.model.embed_tokens",
        "language_model.model.norm",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
        "vision_tower.vision_model.embeddings",
        "vision_tower.vision_model.embeddings.patch_embedding",
        "vision_tower.vision_model.embeddings.position_embedding",
        "vision_tower.vision_model.encoder",
        "vision_tower.vision_model.post_layernorm",
        "vision_tower.vision_model.pre_layrnorm",
    }
    save_file(weights, folder / FILE, metadata={"format": "pt"})
    torch.testing.assert_close(vqa(seeing, path=folder)(images(), PROMPTS), vqa(seeing)(images(), PROMPTS))
    save_file({name: each.half() for name, each in weights.items()}, folder / FILE, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    half = vqa(seeing, path=folder)
    assert {each.dtype for each in half.parameters()} == {torch.float16}
    torch.testing.assert_close(half(images(), PROMPTS), vqa(seeing)(images(), PROMPTS), rtol=0, atol=0.02)


def test_the_published_networks_have_the_published_sizes() -> None:
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(LlavaConfig(text_config=LlamaConfig(vocab_size=32064)))
        deberta = DebertaModel(
            DebertaConfig(
                vocab_size=50265,
                hidden_size=1024,
                num_hidden_layers=48,
                num_attention_heads=16,
                intermediate_size=4096,
                type_vocab_size=0,
                relative_attention=True,
                pos_att_type=["c2p", "p2c"],
                position_biased_input=False,
            )
        )
    sees, reads = (sum(each.numel() for each in net.parameters()) / 1e9 for net in (llava, deberta))
    assert (2 * sees, reads) == (pytest.approx(VqaScore.size_gb, abs=0.05), pytest.approx(0.76, abs=0.005))
    assert Vlm.size_gb == pytest.approx(2 * sees + 4 * reads, abs=0.05)


# --- recall


SAID = ["a red dog on the left", "small blue square", "a circles circle", "xyz a red", "[CLS] the red"]
MEANT = ["a blue circle", "a red square on the left small", "the circle", "the dog zzz", "red"]


@pytest.mark.parametrize("kind, longest, layer", [("bert", 16, 0), ("bert", 16, 1), ("bert", 16, 3), ("deberta", 64, 2)])
def test_recall_is_torchmetrics_for_each_pair(kind: str, longest: int, layer: int, seeing: dict[str, Path]) -> None:
    """For one pair at a time: in a batch torchmetrics 1.9 undoes its sorting by length the wrong way round, and mixes up the pairs."""
    ours = BertRecall(str(seeing[kind]), None, layer)(SAID, MEANT)
    theirs = [
        bert_score([said], [meant], model_name_or_path=str(seeing[kind]), num_layers=layer, max_length=longest)["recall"]
        for said, meant in zip(SAID, MEANT, strict=True)
    ]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=1e-5)


def test_recall_draws_no_random_numbers_and_does_not_depend_on_the_precision_of_training(seeing: dict[str, Path]) -> None:
    recall, before = BertRecall(str(seeing["bert"]), None, 2), torch.get_rng_state()
    plain = recall(SAID, MEANT)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(recall(SAID, MEANT), plain)


def test_a_prompt_s_words_that_are_said_earn_their_share(seeing: dict[str, Path], tmp_path: Path) -> None:
    """Words at right angles: each is like itself alone, and an answer earns the share of the prompt's words that it says."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "blue", "dog"]
    numbers = {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4, "max_position_embeddings": 16}
    net = BertModel(BertConfig(vocab_size=10, hidden_size=16, **numbers))
    for name, each in net.named_parameters():
        nn.init.constant_(each, float("LayerNorm.weight" in name))
    nn.init.eye_(net.embeddings.word_embeddings.weight)
    net.save_pretrained(tmp_path)
    BertTokenizer(vocab={word: n for n, word in enumerate(words)}, model_max_length=16).save_pretrained(tmp_path)
    reward = vlm(seeing, scorer=tmp_path, layer=0)
    said = ["a red circle", "a circle a circle", "circle red a dog", "a blue dog", "dog"]
    reward.answers = lambda _: said  # type: ignore[method-assign]
    torch.testing.assert_close(reward(images(), ["a red circle"] * 5), torch.tensor([3, 2, 3, 1, 0]) / 3)


def test_an_answer_without_words_earns_nothing(seeing: dict[str, Path]) -> None:
    reward = vlm(seeing)
    head = reward.model.net.lm_head
    silent = nn.Linear(head.in_features, head.out_features)
    nn.init.zeros_(silent.weight)
    nn.init.constant_(silent.bias, 0)
    silent.bias.data[2] = 1  # </s> at once
    reward.model.net.lm_head = silent
    assert torch.equal(reward(images(), PROMPTS), torch.zeros(5))
    assert reward.said == [""] * 5
    recall = reward.scorer(["", "a red dog", "red"], ["a dog", "", "red"])
    torch.testing.assert_close(recall, torch.tensor([0.0, 0.0, 1.0]))


def test_texts_longer_than_the_scorer_s_limit_are_cut(seeing: dict[str, Path]) -> None:
    recall, long = BertRecall(str(seeing["bert"]), None, 2), "a red circle on the left a small blue square"
    tokenizer = AutoTokenizer.from_pretrained(seeing["bert"])
    assert len(tokenizer(long).input_ids) < 16 < len(tokenizer(f"{long} the dog " * 9).input_ids)
    cut = recall([f"{long} a dog a dog the dog"], [f"{long} a dog a dog the square"])
    torch.testing.assert_close(cut, recall([f"{long} a dog a dog"], [f"{long} a dog a dog"]))
    assert recall(["dog " * 600], ["a circle " * 600]).isfinite().all()


# --- order


def test_a_network_built_to_say_yes_to_light_does(seeing: dict[str, Path], tmp_path: Path) -> None:
    """Brightness goes from the pixels through the projector and the last word's attention to the logit of Yes, and to no other."""
    folder = shutil.copytree(seeing["llava"], tmp_path / "llava")
    net = LlavaForConditionalGeneration.from_pretrained(folder)
    for name, each in net.named_parameters():
        nn.init.constant_(each, float("norm" in name and name.endswith("weight")))
    eye, talk, bridge = net.model.vision_tower, net.model.language_model, net.model.multi_modal_projector
    yes = LlavaProcessor.from_pretrained(folder).tokenizer.convert_tokens_to_ids("▁Yes")
    with torch.no_grad():
        embeddings = eye.embeddings if hasattr(eye, "embeddings") else eye.vision_model.embeddings
        embeddings.position_embedding.weight[:, 1] = 1
        embeddings.patch_embedding.weight[0] = 0.2 / (3 * 8**2)
        bridge.linear_1.weight[0, 0] = bridge.linear_2.bias[1] = 1
        bridge.linear_2.weight[0, 0] = 0.05
        bridge.linear_1.bias[0] = 5  # where gelu only rises
        talk.embed_tokens.weight[:, 1] = 1
        talk.layers[0].self_attn.v_proj.weight[0, 0] = talk.layers[0].self_attn.o_proj.weight[0, 0] = 1
        net.lm_head.weight[yes, 0] = 1
    net.save_pretrained(folder)
    grey = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 3, 32, 32)
    reward = vqa(seeing, path=folder)
    assert (reward(grey, ["a circle"] * 6).diff() > 0.01).all()
    assert reward.prefer(grey[5:], grey[:1], ["a circle"]) > 0.5


# --- what is not there


@pytest.mark.parametrize("fault", ["nothing", "config", "weights", "truncated", "key", "shape", "vocabulary", "processor", "network"])
def test_a_folder_that_is_no_vision_language_model_is_refused_in_a_line(fault: str, seeing: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(seeing["llava"], tmp_path / "llava")
    spoil(folder, fault, seeing["bert"], "language_model.lm_head.weight")
    with pytest.raises(MissingAsset) as caught:
        vqa(seeing, path=folder)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"reward.path={folder}: ")
    assert "fetch llava-hf/llava-1.5-7b-hf (14.1 GB) with `hf download llava-hf/llava-1.5-7b-hf` and put the folder's path in" in line
    assert {
        "config": "Unrecognized model in",
        "weights": "no file named model.safetensors",
        "truncated": "a safetensors file is truncated or damaged",
        "key": "another network's weights: 1 missing, first lm_head.weight",
        "shape": "another network's weights: 1 of another shape, first lm_head.weight",
        "vocabulary": "tokenizer",
        "processor": "Can't load image processor",
        "network": "Unrecognized configuration class",
    }.get(fault, "") in line


@pytest.mark.parametrize("fault", ["nothing", "config", "weights", "truncated", "key", "shape", "vocabulary"])
def test_a_folder_that_is_no_scorer_is_refused_in_a_line(fault: str, seeing: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(seeing["bert"], tmp_path / "bert")
    spoil(folder, fault, seeing["llava"], "encoder.layer.1.output.dense.bias")
    with pytest.raises(MissingAsset) as caught:
        vlm(seeing, scorer=folder)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"reward.scorer={folder}: ")
    assert (
        "`hf download microsoft/deberta-xlarge-mnli`, its weights as model.safetensors, and put the folder's path in reward.scorer" in line
    )
    assert {
        "truncated": "a safetensors file is truncated or damaged",
        "key": "another network's weights: 1 missing, first encoder.layer.1.output.dense.bias",
        "shape": "another network's weights: 1 of another shape, first encoder.layer.1.output.dense.bias",
        "vocabulary": "there is no vocabulary",
    }.get(fault, "") in line


def spoil(folder: Path, fault: str, other: Path, key: str) -> None:
    file = folder / FILE
    if fault == "nothing":
        shutil.rmtree(folder)
    elif fault in ("config", "weights", "processor"):
        (folder / {"config": "config.json", "weights": FILE, "processor": "processor_config.json"}[fault]).unlink()
    elif fault == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    elif fault in ("key", "shape"):
        weights = load_file(file)
        weights |= {key: weights[key][:-1].clone()}
        if fault == "key":
            del weights[key]
        save_file(weights, file, metadata={"format": "pt"})
    elif fault == "vocabulary":
        for each in list(folder.glob("tokenizer*")):
            each.unlink()
    else:
        for name in ("config.json", FILE):
            shutil.copy(other / name, folder / name)


def test_without_a_network_the_hub_s_names_say_what_to_fetch(seeing: dict[str, Path]) -> None:
    with pytest.raises(MissingAsset, match=r"^reward.path=llava-hf/llava-1.5-7b-hf: .*14.1 GB.*`hf download llava-hf/llava-1.5-7b-hf`"):
        vlm(seeing, path="llava-hf/llava-1.5-7b-hf")
    with pytest.raises(
        MissingAsset, match=r"^reward.scorer=microsoft/deberta-xlarge-mnli: .*3 GB in single.*put the folder's path in reward"
    ):
        vlm(seeing, scorer="microsoft/deberta-xlarge-mnli")


def test_a_pickle_is_not_read(seeing: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(seeing["bert"], tmp_path / "bert")
    torch.save(BertModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / FILE).unlink()
    with pytest.raises(MissingAsset, match=r"^reward.scorer=.*model.safetensors"):
        vlm(seeing, scorer=folder)


def test_words_that_do_not_fit_are_named(seeing: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"^reward.layer=4: .* has 3 layers; take one of them$"):
        vlm(seeing, layer=4)
    with pytest.raises(ValueError, match=r"^reward.reference=The image: the prompt has no place in it; write {prompt} where it belongs"):
        vlm(seeing, reference="The image")
    with pytest.raises(ValueError, match=r"^reward.answer=No and reward.opposite=No begin with the same token"):
        vqa(seeing, answer="No")
    with pytest.raises(ValueError, match=r"^reward.question=Is it\?: it does not ask about the prompt; write {prompt} where"):
        vqa(seeing, question="Is it?")


@pytest.mark.parametrize("choice", ["vlm", "vqa_score"])
def test_a_run_trains_on_it_and_one_without_the_files_ends_with_3(choice: str, seeing: dict[str, Path], tmp_path: Path) -> None:
    words = ["method=ddpo", f"reward={choice}", "eval=quick", "eval.prompts=2", "eval.images=2", "eval.grid=2", "eval.every=0", "epochs=1"]
    words += ["eval.validation_prompts=2", "method.images=8", "method.batch=4", "sampler.steps=3", f"output={tmp_path}"]
    here = [f"reward.path={seeing['llava']}"]
    here += [f"reward.scorer={seeing['bert']}", "reward.layer=2", "reward.max_new_tokens=4"] if choice == "vlm" else []
    assert main([*words, *here]) == 0
    assert main(words) == 3


def test_the_answer_is_compared_with_the_reference_that_holds_the_prompt(seeing: dict[str, Path]) -> None:
    reward = vlm(seeing, reference="the image contains {prompt}")
    scores = reward(images(), PROMPTS)
    expected = reward.scorer(reward.said, [f"the image contains {prompt}" for prompt in PROMPTS])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(scores, vlm(seeing)(images(), PROMPTS), atol=1e-3)
