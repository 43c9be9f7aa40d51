"""How surely a vision-language model says yes when asked whether the image shows the prompt; VQAScore's idea (2404.01291)."""

from typing import ClassVar

import torch
from torch import Tensor

from alignbench.ranges import Count, Text
from alignbench.rewards.base import UNKNOWN, Reward
from alignbench.rewards.vision_language import VisionLanguage


class VqaScore(Reward):
    """P(yes) / (P(yes) + P(no)) of the answer's first token."""

    name = "vqa_score"
    differentiable = False
    spatial = False
    range = (0.0, 1.0)
    unit = "probability"
    licence = "that of the weights; LLaVA 1.5's: Llama 2 Community License"
    backbones = ("CLIP ViT-L/14@336", "CLIP ViT-L/14", "Vicuna 7B")
    datasets = ("LLaVA 1.5's instructions",)
    frame = "8 bits, then as the model's own processor; LLaVA 1.5's: shorter side to 336 (bicubic), centre 336x336, CLIP's mean and std"
    size_gb = 14.1
    published: ClassVar[str] = "llava-hf/llava-1.5-7b-hf"  # whose backbones and data are known

    def __init__(self, *, path: Text, revision: str | None, question: Text, template: Text, answer: Text, opposite: Text, batch: Count):
        """path: Hub id or folder of a vision-language model with its processor; question: with `{prompt}`; template: see VisionLanguage;
        answer: the one that is paid for; batch: images asked about at once. Raises MissingAsset, and ValueError where the question is
        not about the prompt or the two answers begin alike.
        """
        super().__init__()
        if "{prompt}" not in question:
            raise ValueError(f"reward.question={question}: it does not ask about the prompt; write {{prompt}} where the prompt goes")
        self.model = VisionLanguage(path, revision, template)
        first = [self.model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (answer, opposite)]
        if first[0] == first[1]:
            raise ValueError(
                f"reward.answer={answer} and reward.opposite={opposite} begin with the same token of {path}; take words that do not"
            )
        if path != self.published:
            self.stand_on((UNKNOWN,), (UNKNOWN,))
        self.question, self.answer, self.opposite = question, answer, opposite
        self._first, self._batch = first, batch
        self.asked = self.model.conversation(question)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        questions = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        size, starts = self._batch, range(0, len(prompts), self._batch)
        yes, no = torch.cat([self.model.first(images[i : i + size], questions[i : i + size])[:, self._first] for i in starts]).unbind(1)
        return torch.sigmoid(yes - no).to(images.device)
