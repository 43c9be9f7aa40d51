"""DDPO's prompt-image alignment (2305.13301, section 5.2): how much of the prompt a vision-language model says that it sees."""

from typing import ClassVar

import torch
from torch import Tensor

from alignbench.ranges import Count, Index, Text
from alignbench.rewards.base import UNKNOWN, Reward
from alignbench.rewards.bert_score import BertRecall
from alignbench.rewards.vision_language import VisionLanguage


class Vlm(Reward):
    """BERTScore's recall of the prompt in the model's answer to one question about the image."""

    name = "vlm"
    differentiable = False
    spatial = False
    range = (0.0, 1.0)
    unit = "BERTScore recall"
    licence = "those of the weights; LLaVA 1.5's: Llama 2 Community License; DeBERTa's: MIT"
    backbones = ("CLIP ViT-L/14@336", "CLIP ViT-L/14", "Vicuna 7B", "DeBERTa XLarge")
    datasets = ("LLaVA 1.5's instructions", "MNLI")
    frame = "8 bits, then as the model's own processor; LLaVA 1.5's: shorter side to 336 (bicubic), centre 336x336, CLIP's mean and std"
    size_gb = 17.2
    published: ClassVar[tuple[str, str]] = (
        "llava-hf/llava-1.5-7b-hf",
        "microsoft/deberta-xlarge-mnli",
    )  # whose backbones and data are known

    def __init__(
        self,
        *,
        path: Text,
        revision: str | None,
        question: Text,
        reference: Text,
        template: Text,
        max_new_tokens: Count,
        scorer: Text,
        scorer_revision: str | None,
        layer: Index,
        batch: Count,
    ):
        """path, scorer: Hub id or folder of a vision-language model with its processor, and of a text encoder with its tokenizer, at their
        revisions; reference: with {prompt} in it, what the answer is compared with; template: see VisionLanguage; layer: whose states are
        compared; batch: images asked about at once. Raises MissingAsset.
        """
        super().__init__()
        if "{prompt}" not in reference:
            raise ValueError(f"reward.reference={reference}: the prompt has no place in it; write {{prompt}} where it belongs")
        self.scorer = BertRecall(scorer, scorer_revision, layer)
        self.model = VisionLanguage(path, revision, template)
        if (path, scorer) != self.published:
            self.stand_on((UNKNOWN,), (UNKNOWN,))
        self.question, self.reference, self.max_new_tokens, self.layer, self._batch = question, reference, max_new_tokens, layer, batch
        self.asked = self.model.conversation(question)
        self.said: list[str] = []  # the answers behind the last scores
        self.requires_grad_(False)
        self.eval()

    def answers(self, images: Tensor) -> list[str]:
        """What the model says about each image [B,3,H,W]."""
        parts = images.split(self._batch)
        return [answer for part in parts for answer in self.model.answers(part, [self.question] * len(part), self.max_new_tokens)]

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.said, size = self.answers(images), self._batch
        wanted = [self.reference.replace("{prompt}", prompt) for prompt in prompts]
        return torch.cat([self.scorer(self.said[i : i + size], wanted[i : i + size]) for i in range(0, len(wanted), size)]).to(
            images.device
        )
