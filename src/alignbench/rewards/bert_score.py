"""BERTScore's recall (1904.09675): how much of a reference a candidate says, by the closest of its words in a language model's eyes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignbench.config import located
from alignbench.hub import obtained, whole, worded

FETCH = (
    "fetch microsoft/deberta-xlarge-mnli (0.76 billion weights: 1.5 GB in half precision, 3 GB in single) with "
    "`hf download microsoft/deberta-xlarge-mnli`, its weights as model.safetensors, and put the folder's path in reward.scorer"
)


class BertRecall(nn.Module):
    """Neither idf weights nor a baseline; the tokens that only mark start and end neither count nor match."""

    def __init__(self, path: str, revision: str | None, layer: int):
        """layer: of hidden states; 0 is the embedding. Raises ValueError where the network has fewer."""
        super().__init__()
        self.net, self.tokenizer = obtained(lambda: self._loaded(path, revision), f"reward.scorer={path}", FETCH)
        if layer > (most := self.net.config.num_hidden_layers):
            raise ValueError(f"reward.layer={layer}: {path} has {most} layers; take one of them")
        self.layer, self.longest = layer, min(self.tokenizer.model_max_length, self.net.config.max_position_embeddings)

    @staticmethod
    def _loaded(path: str, revision: str | None) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = worded(AutoTokenizer.from_pretrained(located(path), revision=revision, trust_remote_code=False))
        return whole(AutoModel, path, revision, torch.float32, spare="pooler"), tokenizer  # no pooler is asked, and not every file has one

    def _embedded(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.longest, return_special_tokens_mask=True, return_tensors="pt"
        ).to(self.net.device)
        words = 1 - tokens.pop("special_tokens_mask").float()  # [B,L]
        states = self.net(tokens["input_ids"], tokens["attention_mask"], output_hidden_states=True).hidden_states[self.layer]
        return F.normalize(states, dim=-1) * words[..., None], words

    @torch.no_grad()
    def forward(self, candidates: list[str], references: list[str]) -> Tensor:
        """Recall [B] in [0,1]; 0 where either has no words."""
        with torch.autocast(self.net.device.type, enabled=False):
            (said, _), (wanted, words) = self._embedded(candidates), self._embedded(references)
            closest = (wanted @ said.mT).amax(2).clamp(0, 1)  # [B,L]: a word that nothing is like earns 0, not less
            return (closest * words).sum(1) / words.sum(1).clamp(min=1)
