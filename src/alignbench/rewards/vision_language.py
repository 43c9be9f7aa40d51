"""A vision-language model (LLaVA and its like) through transformers: images and questions in, its words or its next token out."""

from typing import Any

import torch
from torch import Tensor, nn

from alignbench.config import located
from alignbench.hub import obtained, whole, worded

FETCH = "fetch llava-hf/llava-1.5-7b-hf (14.1 GB) with `hf download llava-hf/llava-1.5-7b-hf` and put the folder's path in reward.path"


class VisionLanguage(nn.Module):
    """Asks about 8-bit images, as its processor takes them. Greedy; padded on the left, so that answers start where questions end."""

    def __init__(self, path: str, revision: str | None, template: str):
        """template: a conversation with `{question}` and the image's token, where the processor has no template of its own."""
        super().__init__()
        self.net, self.processor = obtained(lambda: self._loaded(path, revision), f"reward.path={path}", FETCH)
        self.tokenizer, self.template = self.processor.tokenizer, template
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token

    @staticmethod
    def _loaded(path: str, revision: str | None) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        processor = AutoProcessor.from_pretrained(located(path), revision=revision, trust_remote_code=False)
        if not hasattr(processor, "tokenizer"):
            raise ValueError("there is no processor of images and words")
        worded(processor.tokenizer)
        return whole(AutoModelForImageTextToText, path, revision, "auto", spare=""), processor

    def conversation(self, question: str) -> str:
        """The text that the model goes on from."""
        if not self.processor.chat_template:
            return self.template.replace("{question}", question)
        said = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        return self.processor.apply_chat_template([said], add_generation_prompt=True)

    def answers(self, images: Tensor, questions: list[str], most: int) -> list[str]:
        """What it says about each image [B,3,H,W], in at most so many tokens."""
        said, _ = self._generated(images, questions, most, False)
        return [each.strip() for each in self.tokenizer.batch_decode(said, skip_special_tokens=True)]

    def first(self, images: Tensor, questions: list[str]) -> Tensor:
        """Logits of an answer's first token [B,V]."""
        return self._generated(images, questions, 1, True)[1][0].float()

    @torch.no_grad()
    def _generated(self, images: Tensor, questions: list[str], most: int, logits: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        from PIL import Image

        pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        texts, start = [self.conversation(each) for each in questions], self.tokenizer.bos_token
        inputs = self.processor(
            images=[Image.fromarray(each) for each in pixels],
            text=texts,
            padding=True,
            return_tensors="pt",
            add_special_tokens=not (start and texts[0].startswith(start)),  # some templates write the start themselves
        ).to(self.net.device, self.net.dtype)
        with torch.autocast(self.net.device.type, enabled=False):  # a score does not depend on the precision of training
            made = self.net.generate(
                **inputs,
                do_sample=False,
                num_beams=1,
                max_new_tokens=most,
                pad_token_id=self.tokenizer.pad_token_id,
                output_logits=logits,
                return_dict_in_generate=True,
            )
        return made.sequences[:, inputs["input_ids"].shape[1] :], made.logits
