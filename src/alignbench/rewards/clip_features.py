"""CLIP's images and texts as unit vectors, for judges that compare images with each other or with several texts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignbench.config import MissingAsset, located
from alignbench.rewards.clip import loaded, tokenizer_at, weights_at
from alignbench.rewards.framing import clip_normalised, framed
from alignbench.weights import first_line


class ClipFeatures(nn.Module):
    """Frozen, in fp32 whatever the precision of training; a row depends on its own image or text alone."""

    def __init__(self, path: str, revision: str | None):
        """path: Hub id or folder of config.json, model.safetensors and the tokenizer. Raises MissingAsset where they cannot be had."""
        super().__init__()
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CLIPConfig

        try:
            config = CLIPConfig.from_pretrained(located(path), revision=revision)
            self.net = loaded(config, weights_at(path, revision))
            self.tokenizer = tokenizer_at(path, revision, config.text_config.vocab_size)
        except (OSError, ValueError, StrictDataclassError) as error:
            raise MissingAsset(
                f"reward.path={path}: no CLIP there ({first_line(error)}); fetch config.json, model.safetensors (1.7 GB for ViT-L/14) and "
                "the tokenizer with `hf download openai/clip-vit-large-patch14` and put that id, or the files' folder, in reward.path"
            ) from error
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1] as unit vectors [B,D]."""
        like, size = next(self.net.parameters()), self.net.config.vision_config.image_size
        with torch.autocast(like.device.type, enabled=False):
            pixels = clip_normalised(framed(images.to(like), size, floor=True))  # crops as transformers does
            return F.normalize(self.net.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Texts as unit vectors [B,D]."""
        like, longest = next(self.net.parameters()), self.net.config.text_config.max_position_embeddings
        words = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(like.device)
        with torch.autocast(like.device.type, enabled=False):
            read = self.net.get_text_features(input_ids=words.input_ids, attention_mask=words.attention_mask)
            return F.normalize(read.pooler_output, dim=-1)
