"""A CLIP (2103.00020) of transformers, its images and texts as unit vectors, for judges that compare images with each other."""

from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from alignbench.config import MissingAsset, located
from alignbench.rewards.framing import clip_normalised, framed
from alignbench.rewards.weights import first_line


class ClipFeatures(nn.Module):
    """Frozen, in fp32 whatever the precision of training; a row depends on its own image or text alone."""

    def __init__(self, path: str, revision: str | None):
        """path: Hub id or folder of config.json, model.safetensors and the tokenizer. Raises MissingAsset where they cannot be had."""
        super().__init__()
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self.net, said = CLIPModel.from_pretrained(located(path), revision=revision, use_safetensors=True, output_loading_info=True)
            if said["missing_keys"]:
                raise ValueError(f"{len(said['missing_keys'])} weights are missing, first {min(said['missing_keys'])}")
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(located(path), revision=revision)
            words, known = len(self.tokenizer), self.net.config.text_config.vocab_size
            if words != known:  # transformers makes an empty vocabulary of one that it cannot find, without a word
                raise ValueError(f"{words} words where the weights know {known}")
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise MissingAsset(
                f"reward.path={path}: no CLIP there ({first_line(error)}); fetch config.json, model.safetensors (1.7 GB for ViT-L/14) and "
                "the tokenizer with `hf download openai/clip-vit-large-patch14` and put that id, or the files' folder, in reward.path"
            ) from error
        self.net.float().requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1] as unit vectors [B,D]."""
        like, size = next(self.net.parameters()), self.net.config.vision_config.image_size
        with torch.autocast(like.device.type, enabled=False):
            seen = self.net.vision_model(pixel_values=clip_normalised(framed(images.to(like), size))).pooler_output
            return F.normalize(self.net.visual_projection(seen), dim=-1)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Texts as unit vectors [B,D]."""
        like, longest = next(self.net.parameters()), self.net.config.text_config.max_position_embeddings
        words = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(like.device)
        with torch.autocast(like.device.type, enabled=False):
            read = self.net.text_model(input_ids=words.input_ids, attention_mask=words.attention_mask).pooler_output
            return F.normalize(self.net.text_projection(read), dim=-1)
