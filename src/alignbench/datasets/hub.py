"""Prompts of a dataset on the Hugging Face Hub: files that are named one by one, downloaded as they are; no script of theirs is run."""

import shlex
from pathlib import Path, PurePosixPath

from alignbench.config import ConfigError, MissingAsset
from alignbench.datasets.files import read
from alignbench.datasets.splits import Repeated, Shares, entries, parted
from alignbench.datasets.table import Table
from alignbench.ranges import Text, Texts

FILE = "file"  # a column that every row has: the name of its file without the ending, where the file has no column of that name


class HubPrompts:
    """Parted by a column or by hash over all files."""

    def __init__(
        self,
        *,
        repository: Text,
        revision: Text | None,
        files: Texts,
        column: Text,
        group: Text | None,
        keep: list[Text],
        split: Text | None,
        shares: Shares | None,
        repeated: Repeated,
    ):
        """revision: a commit, tag or branch, null for the newest; the rest is as PromptFile's; the column `file` is each row's file.

        Raises ConfigError with the row that is wrong, MissingAsset with the command that fetches what is not here.
        """
        if split is None and shares is None:
            raise ConfigError("dataset.shares: null, and dataset.split too; name a column of splits, or give shares")
        wanted = {column, *keep, *filter(None, (group, split))}
        rows = []
        for file in files:
            place = obtained(repository, revision, file, files)
            table = named(read(place, f"dataset.files[{file}] of {repository}", wanted), PurePosixPath(file).stem)
            rows += entries(table, column, group, keep, split)
        made = parted(rows, shares if split is None else None, repeated)
        self.train, self.validation, self.test, self.about = made.train, made.validation, made.test, made.about


def named(table: Table, stem: str) -> Table:
    if FILE in table.columns:
        return table
    return Table(table.called, [*table.columns, FILE], [row | {FILE: stem} for row in table.rows])


def obtained(repository: str, revision: str | None, file: str, files: list[str]) -> Path:
    """The file in the Hub's cache, downloaded where it is not there yet and the Hub may be asked."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
    except HFValidationError as error:
        raise ConfigError(f"dataset.repository={repository}: no name of a repository ({_line(error)}); write owner/name") from None
    except (OSError, ValueError) as error:  # not in the cache, no network, no such file, gated
        raise MissingAsset(
            f"dataset.repository={repository}: {file} is not here ({_line(error)}); type `{fetch(repository, revision, files)}`"
        ) from None


def fetch(repository: str, revision: str | None, files: list[str]) -> str:
    """What to type to have them."""
    return shlex.join(["hf", "download", "--repo-type", "dataset", repository, *files, *(["--revision", revision] if revision else [])])


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".: ")
