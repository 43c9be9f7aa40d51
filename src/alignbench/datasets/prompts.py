"""Prompts in files of one's own, or shipped in lists/."""

from pathlib import Path

from alignbench.config import ConfigError, located
from alignbench.datasets.files import read
from alignbench.datasets.splits import SPLITS, Entry, Repeated, Shares, entries, parted
from alignbench.ranges import Text


class PromptFile:
    """One file, parted by a column or by hash."""

    def __init__(
        self,
        *,
        path: Text,
        column: Text,
        group: Text | None,
        keep: list[Text],
        split: Text | None,
        shares: Shares | None,
        repeated: Repeated,
    ):
        """column: of the prompts; group: of a word beside each (category, style); keep: further columns, kept by prompt; split: of train,
        validation or test; shares: where there is no such column. Raises ConfigError with the row that is wrong.
        """
        if split is None and shares is None:
            raise ConfigError("dataset.shares: null, and dataset.split too; name a column of splits, or give shares")
        table = read(Path(located(path)), f"dataset.path={path}", {column, *keep, *filter(None, (group, split))})
        made = parted(entries(table, column, group, keep, split), shares if split is None else None, repeated)
        self.train, self.validation, self.test, self.about = made.train, made.validation, made.test, made.about


class PromptFiles:
    """A file a split; one that is not needed is null."""

    def __init__(
        self,
        *,
        train: Text | None,
        validation: Text | None,
        test: Text | None,
        column: Text,
        group: Text | None,
        keep: list[Text],
        repeated: Repeated,
    ):
        """As PromptFile's. Raises ConfigError, for near-duplicates in two files too."""
        rows: list[Entry] = []
        for split, path in zip(SPLITS, (train, validation, test), strict=True):
            if path is not None:
                table = read(Path(located(path)), f"dataset.{split}={path}", {column, *keep, *filter(None, (group,))})
                rows += [Entry(row.prompt, row.called, row.row, row.about, split) for row in entries(table, column, group, keep, None)]
        if not rows:
            raise ConfigError("dataset.train, dataset.validation and dataset.test are null; name a file")
        made = parted(rows, None, repeated)
        self.train, self.validation, self.test, self.about = made.train, made.validation, made.test, made.about
