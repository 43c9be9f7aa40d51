"""The head that LAION's aesthetic predictor brought in and ImageReward took over: five linear layers, and nothing between them."""

from itertools import pairwise

from torch import nn

HeadWidths = tuple[int, int, int, int, int, int]  # from the input to the output
PUBLISHED_HEAD: HeadWidths = (768, 1024, 128, 64, 16, 1)
LAYERS = ("0", "2", "4", "6", "7")  # as both files number them: between them is dropout, and no activation


def linear_head(widths: HeadWidths) -> nn.Sequential:
    """Features [B,widths[0]] to scores [B,1]; its parameters are named as in the published files."""
    head = nn.Sequential()
    for name, (width, out) in zip(LAYERS, pairwise(widths), strict=True):
        head.add_module(name, nn.Linear(width, out))
    return head
