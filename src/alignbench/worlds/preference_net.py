"""The network of the sandbox's learned reward: a small image-text judge."""

import torch
from torch import Tensor, nn

from alignbench.worlds.scenes import PIXELS, all_scenes

VOCABULARY = {word: i for i, word in enumerate(sorted({word for scene in all_scenes() for word in scene.caption.split()}))}
LONGEST = 11  # words of a caption


class PreferenceNet(nn.Module):
    """Scores [B] of images [B,3,32,32] in [0,1]: how well an image goes with its prompt, as a dot product, plus how good it looks alone.

    The two towers of a CLIP-like judge, small. Each word has a vector for each place in the caption, since "red ... on a blue background"
    is not "blue ... on a red background"; their sum is the text, so that unseen pairs of seen words have a meaning.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: tuple[int, int, int] = (32, 64, 64), hidden: int = 192, joint: int = 64):
        super().__init__()
        self.words = nn.Embedding(LONGEST * len(VOCABULARY), joint)
        nn.init.normal_(self.words.weight, std=LONGEST**-0.5)
        first, second, third = channels
        self.picture = nn.Sequential(
            nn.PixelUnshuffle(2),  # as much as a convolution on every pixel would see, at a quarter of its cost
            nn.Conv2d(12, first, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),  # not pooled: the caption says where the shape is
            nn.Linear(third * (PIXELS // 8) ** 2, hidden),
            nn.GELU(),
        )
        for layer in self.picture:  # without it the dot product stays near 0, and its gradient with it, for a fifth of the training
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.match, self.looks = nn.Linear(hidden, joint), nn.Linear(hidden, 1)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def text(self, prompts: list[str]) -> Tensor:
        """Prompts as vectors [B,joint]."""
        rows = []
        for prompt in prompts:
            words = prompt.split()
            if strange := next((word for word in words if word not in VOCABULARY), None):
                raise ValueError(f"the sandbox's preference net does not know the word {strange!r}; its prompts are scenes' captions")
            if len(words) > LONGEST:
                raise ValueError(f"the sandbox's preference net reads up to {LONGEST} words, and {prompt!r} has {len(words)}")
            places = [place * len(VOCABULARY) + VOCABULARY[word] for place, word in enumerate(words)]
            rows.append(self.words(torch.tensor(places, dtype=torch.long, device=self.words.weight.device)).sum(0))
        return torch.stack(rows)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        seen = self.picture(images.to(self.words.weight.dtype) * 2 - 1)
        raw = (self.match(seen) * self.text(prompts)).sum(1) + self.looks(seen)[:, 0]
        return (raw - self.mean) / self.std
