"""Preference pairs in a table beside its images: a row names two images, their prompt, and which is preferred."""

from pathlib import Path

from alignbench.datasets.decode import inside
from alignbench.datasets.files import read
from alignbench.datasets.pairs import Choice, GivenPairs, Ties
from alignbench.datasets.table import nearest, short
from alignbench.ranges import Count, Text

ANSWERS = ("a", "b", "tie")


class PairTable(GivenPairs):
    """A .csv, .jsonl, .json or .parquet; the columns' usual names are ours."""

    def __init__(
        self,
        *,
        path: Text,
        folder: Text | None = None,
        size: Count,
        ties: Ties,
        image_a: Text = "image_a",
        image_b: Text = "image_b",
        prompt: Text = "prompt",
        preferred: Text = "preferred",
    ):
        """path: the table; folder: of the images, null for the table's own; size: pixels, as `ImageFolder`'s; ties: whether pairs of
        equally good images are left out, or drawn with weight 0; the rest: its columns, of which `preferred` holds a, b or tie.

        Raises ConfigError with the row for one that is wrong; a damaged image only when it is drawn.
        """
        file, called = Path(path), f"method.pairs.path={path}"
        images = Path(folder) if folder else file.parent
        table = read(file, called, (image_a, image_b, prompt, preferred))
        prompts, answers = table.words(prompt), table.words(preferred)
        choices = []
        for number, names in enumerate(zip(table.words(image_a), table.words(image_b), strict=True), 1):
            where, answer = f"{called}, row {number}", answers[number - 1].strip().lower()
            if answer not in ANSWERS:
                raise table.wrong(number, f"{preferred} is {short(answers[number - 1])}; {nearest(answer, ANSWERS)}")
            first, second = (inside(images, name, where) for name in names)
            win, lose = (second, first) if answer == "b" else (first, second)
            choices.append(Choice(win, lose, prompts[number - 1], answer == "tie", where))
        super().__init__(choices, size, ties, called)
