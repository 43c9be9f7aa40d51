"""Preference pairs that a person made with `alignbench label`: the chosen image of a group against each other one."""

from pathlib import Path

from alignbench.config import ConfigError
from alignbench.datasets.decode import inside
from alignbench.datasets.pairs import Choice, GivenPairs, Ties
from alignbench.labels import preferences, read_items
from alignbench.ranges import Count, Text


class LabelledPairs(GivenPairs):
    """Groups that were not labelled are no pairs; of a tie the first image stands against each other one."""

    def __init__(self, *, path: Text, size: Count, ties: Ties):
        """path: the labels folder; size, ties: as `PairTable`'s. Raises ConfigError where it is damaged or holds no label."""
        called = f"method.pairs.path={path}"
        try:
            items, labels = read_items(path), preferences(path)
        except ValueError as error:
            raise ConfigError(f"{called}: {error}") from None
        choices = []
        for group, best in labels:
            where, chosen = f"{called}, group {group}", items.groups[group]
            images = [inside(Path(path) / "images", name, where) for name in chosen.images]
            win = images[best or 0]
            choices += [Choice(win, lose, chosen.prompt, best is None, where) for lose in images if lose != win]
        super().__init__(choices, size, ties, called)
