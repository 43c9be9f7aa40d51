"""The sandbox's world: captioned scenes of one shape, drawn in closed form, and the exact judge that reads them back."""

import re
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

PIXELS = 32
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLOURS = {  # RGB in [0,1]; one per corner of the cube, pulled inwards so that an overshoot stays readable
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.75, 0.20),
    "blue": (0.12, 0.20, 0.90),
    "yellow": (0.95, 0.90, 0.15),
    "magenta": (0.88, 0.18, 0.85),
    "cyan": (0.15, 0.85, 0.90),
    "white": (0.96, 0.96, 0.96),
    "black": (0.06, 0.06, 0.06),
}
SIZES = {"small": 4.5, "large": 7.0}  # radius in pixels
POSITIONS = {  # offset of the shape's centroid from the image's centre, in pixels (x to the right, y down)
    "at the left": (-6.0, 0.0),
    "at the right": (6.0, 0.0),
    "at the top": (0.0, -6.0),
    "at the bottom": (0.0, 6.0),
    "in the centre": (0.0, 0.0),
}
ATTRIBUTES = ("shape", "colour", "size", "position", "background")
Split = Literal["train", "validation", "test"]

_COLOUR_NAMES = tuple(COLOURS)
_POSITION_NAMES = tuple(POSITIONS)
_SIZE_NAMES = tuple(SIZES)
_CAPTION = re.compile(
    rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) ({'|'.join(POSITIONS)}) on a ({'|'.join(COLOURS)}) background"
)
_JITTER_CENTRE, _JITTER_RADIUS = 1.0, 0.4  # pixels, uniform, each way


@dataclass(frozen=True)
class Scene:
    """One caption's five attributes, by name."""

    shape: str
    colour: str
    size: str
    position: str
    background: str

    @property
    def caption(self) -> str:
        return f"a {self.size} {self.colour} {self.shape} {self.position} on a {self.background} background"

    @property
    def split(self) -> Split:
        """Twelve of the 48 (shape, colour) pairs never occur in training: six for validation, six for test."""
        turn = (_COLOUR_NAMES.index(self.colour) - SHAPES.index(self.shape)) % len(COLOURS)
        held_out: dict[int, Split] = {0: "validation", 4: "test"}
        return held_out.get(turn, "train")

    @property
    def indices(self) -> tuple[int, int, int, int, int]:
        """The attributes as integers, in the order of ``ATTRIBUTES``."""
        return (
            SHAPES.index(self.shape),
            _COLOUR_NAMES.index(self.colour),
            _SIZE_NAMES.index(self.size),
            _POSITION_NAMES.index(self.position),
            _COLOUR_NAMES.index(self.background),
        )

    @classmethod
    def parse(cls, caption: str) -> "Scene":
        """Read a caption back. Raises ValueError for text that is no scene."""
        found = _CAPTION.fullmatch(caption)
        if found is None:
            raise ValueError(
                f"not a scene's caption: {caption!r} (expected, for example, 'a small red circle at the left on a blue background')"
            )
        size, colour, shape, position, background = found.groups()
        return cls(shape, colour, size, position, background)


def all_scenes(split: Split | None = None) -> list[Scene]:
    """Every scene (of one split), in a fixed order: 3,360 in all, the background always of another colour."""
    scenes = [
        Scene(shape, colour, size, position, background)
        for shape, colour, size, position, background in product(SHAPES, COLOURS, SIZES, POSITIONS, COLOURS)
        if colour != background
    ]
    return [scene for scene in scenes if split is None or scene.split == split]


def coverage(shape: str, centre: Tensor, radius: Tensor) -> Tensor:
    """How much of each pixel a shape covers: [B,H,W] in [0,1], from its signed distance (anti-aliased over one pixel).

    centre [B,2] in pixels (x, y), radius [B] in pixels.
    """
    axis = torch.arange(PIXELS, dtype=centre.dtype) + 0.5
    x = axis[None, None, :] - centre[:, 0, None, None]  # [B,1,W]
    y = axis[None, :, None] - centre[:, 1, None, None]  # [B,H,1]
    r = radius[:, None, None]
    from_centre = (x.square() + y.square()).clamp(min=1e-12).sqrt()  # hypot's gradient at the centre itself is NaN
    match shape:
        case "circle":
            distance = from_centre - r
        case "square":
            distance = torch.maximum(x.abs(), y.abs()) - 0.88 * r
        case "triangle":  # equilateral, pointing up, circumradius 1.25 r
            distance = torch.maximum(y, 0.8660254 * x.abs() - 0.5 * y) - 0.625 * r
        case "cross":
            bar = torch.maximum(x.abs() - r, y.abs() - 0.34 * r)
            distance = torch.minimum(bar, torch.maximum(y.abs() - r, x.abs() - 0.34 * r))
        case "ring":
            distance = (from_centre - 0.75 * r).abs() - 0.25 * r
        case "diamond":
            distance = (x.abs() + y.abs() - 1.3 * r) * 0.7071068
        case _:
            raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    return (0.5 - distance).clamp(0, 1)


def draw(scenes: list[Scene], generator: torch.Generator) -> Tensor:
    """Paint scenes with a slight jitter of place and size: [B,3,H,W] in [0,1]."""
    jitter = torch.rand(len(scenes), 3, generator=generator) * 2 - 1
    images = torch.empty(len(scenes), 3, PIXELS, PIXELS)
    for row, scene in enumerate(scenes):
        offset = torch.tensor(POSITIONS[scene.position])
        centre = PIXELS / 2 + offset + _JITTER_CENTRE * jitter[row, :2]
        radius = SIZES[scene.size] + _JITTER_RADIUS * jitter[row, 2:]
        alpha = coverage(scene.shape, centre[None], radius)
        ink, paper = (torch.tensor(COLOURS[name])[:, None, None] for name in (scene.colour, scene.background))
        images[row] = paper + alpha * (ink - paper)
    return images


@dataclass(frozen=True)
class Reading:
    """What the exact judge measures on each image, in closed form; no network."""

    paper: Tensor  # [B,3] the background's colour: the border's median
    ink: Tensor  # [B,3] the shape's colour: the mean of the pixels farthest from the background's
    offset: Tensor  # [B,2] the ink's centroid from the image's centre, in pixels
    overlap: Tensor  # [B,shapes,sizes] soft intersection over union with each shape and size, drawn at that centroid
    drawn: Tensor  # [B] bool: whether there is anything but background
    alpha: Tensor  # [B,H,W] how much of each pixel is ink, in [0,1]; 0 where nothing is drawn

    @classmethod
    def of(cls, images: Tensor) -> "Reading":
        if tuple(images.shape[-2:]) != (PIXELS, PIXELS):
            size = "x".join(map(str, images.shape[-2:]))
            raise ValueError(f"the exact judge reads {PIXELS}x{PIXELS} scenes, not {size} images; choose another reward, and eval=plain")
        images = images.float().cpu()
        pixels = images.flatten(2).transpose(1, 2)  # [B,HW,3]
        border = torch.zeros(PIXELS, PIXELS, dtype=torch.bool)
        border[[0, -1], :] = border[:, [0, -1]] = True
        edge = pixels[:, border.flatten()]
        paper = edge.median(1).values + (edge.mean(1) - edge.mean(1).detach())  # a median's own gradient would move one pixel of the border
        distance = (pixels - paper[:, None]).norm(dim=-1)  # [B,HW]
        strongest = distance.topk(12, dim=1).values.mean(1)  # 12 pixels: well inside the smallest shape
        far = (distance >= 0.7 * strongest[:, None]).float()
        ink = (far[..., None] * pixels).sum(1) / far.sum(1, keepdim=True)
        direction = (ink - paper)[:, None]
        alpha = ((pixels - paper[:, None]) * direction).sum(-1) / direction.square().sum(-1).clamp(min=1e-6)
        alpha = torch.where(alpha < 0.25, 0.0, alpha.clamp(max=1))  # [B,HW]; what is fainter is the decoder's ripple

        axis = torch.arange(PIXELS) + 0.5
        grid = torch.stack([axis.repeat(PIXELS), axis.repeat_interleave(PIXELS)], -1)  # [HW,2] as x, y
        centre = (alpha[..., None] * grid).sum(1) / alpha.sum(1, keepdim=True).clamp(min=1e-6)
        overlaps = []
        for shape, radius in product(SHAPES, SIZES.values()):
            found = []
            for jitter in (-_JITTER_RADIUS, 0.0, _JITTER_RADIUS):
                template = coverage(shape, centre, torch.full((len(images),), radius + jitter)).flatten(1)
                found.append(torch.minimum(alpha, template).sum(1) / torch.maximum(alpha, template).sum(1))
            overlaps.append(torch.stack(found, 1).amax(1))
        overlap = torch.stack(overlaps, 1).unflatten(1, (len(SHAPES), len(SIZES)))
        drawn = strongest >= 0.25
        return cls(paper, ink, centre - PIXELS / 2, overlap, drawn, (alpha * drawn[:, None]).unflatten(1, (PIXELS, PIXELS)))

    @property
    def features(self) -> Tensor:
        """Twenty numbers an image [B,20], each of order 1: for distances between images and between sets of them."""
        return torch.cat([self.paper, self.ink, self.offset / 6, self.overlap.flatten(1)], 1)


def read(images: Tensor) -> Tensor:
    """What each image shows, as attribute indices [B,5] in the order of ``ATTRIBUTES``; -1 where nothing is drawn."""
    seen = Reading.of(images)
    best = seen.overlap.flatten(1).argmax(1)
    colour, background = ((each[:, None] - _PALETTE).norm(dim=-1).argmin(1) for each in (seen.ink, seen.paper))
    position = (seen.offset[:, None] - _PLACES).norm(dim=-1).argmin(1)
    shown = torch.stack([best // len(SIZES), colour, best % len(SIZES), position], 1)
    shown[~seen.drawn] = -1
    return torch.cat([shown, background[:, None]], 1)


def correct(images: Tensor, prompts: list[str]) -> Tensor:
    """Which of the five attributes are as the prompt says: bool [B,5], in the order of ``ATTRIBUTES``."""
    return read(images) == _wanted(prompts)


def nearness(images: Tensor, prompts: list[str]) -> Tensor:
    """How nearly each attribute is as the prompt says: [B,5] in [0,1], near 1 on real scenes; 0 for a shape that is not drawn.

    Colours: exp(-(d / 0.35)^2), d the RGB distance to the named one. Position: exp(-(d / 4)^2), d in pixels beyond the jitter. Shape and
    size: the best overlap of the wanted one as a share of the best overlap of any.
    """
    return _nearness(Reading.of(images), prompts)


def nearness_map(images: Tensor, prompts: list[str]) -> Tensor:
    """`nearness`, a pixel: [B,H,W], whose mean over an image is the image's mean over its five attributes.

    Ink earns S, the mean of the shape's four attributes, and paper b, the background's, each pixel by how much it is ink. The same number
    is added to all pixels of an image, (4/5 - ink) (S - b) with its share of ink, since its score weighs S and b four to one, whatever
    their areas.
    Scaling the two parts instead would pay a pixel of a small shape more than ten times one of the background, for being ink at all.
    """
    seen = Reading.of(images)
    near = _nearness(seen, prompts)
    shape, background = (each[:, None, None] for each in (near[:, :4].mean(1), near[:, 4]))
    pixels = background + seen.alpha * (shape - background)
    return pixels + (near.mean(1) - pixels.mean((1, 2)))[:, None, None]


def _nearness(seen: Reading, prompts: list[str]) -> Tensor:
    shape, colour, size, position, background = _wanted(prompts).unbind(1)
    row = torch.arange(len(prompts))
    best = seen.overlap.flatten(1).amax(1).clamp(min=1e-6)
    beyond = ((seen.offset - _PLACES[position]).norm(dim=-1) - 2**0.5 * _JITTER_CENTRE).clamp(min=0)
    drawn = torch.stack(
        [
            seen.overlap[row, shape].amax(1) / best,
            torch.exp(-(seen.ink - _PALETTE[colour]).square().sum(1) / 0.35**2),
            seen.overlap[row, :, size].amax(1) / best,
            torch.exp(-((beyond / 4) ** 2)),
        ],
        1,
    )
    paper = torch.exp(-(seen.paper - _PALETTE[background]).square().sum(1) / 0.35**2)
    return torch.cat([drawn * seen.drawn[:, None], paper[:, None]], 1)


def _wanted(prompts: list[str]) -> Tensor:
    return torch.tensor([Scene.parse(prompt).indices for prompt in prompts])


_PALETTE = torch.tensor(list(COLOURS.values()))  # [8,3]
_PLACES = torch.tensor(list(POSITIONS.values()))  # [5,2]
