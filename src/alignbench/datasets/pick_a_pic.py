"""Pick-a-Pic's layout (2305.01569): parquet files of two images' bytes, a caption and a label each.

Columns as the dataset card of yuvalkirstain/pickapic_v2 lists them: jpg_0 and jpg_1 binary, label_0 and label_1 float64, caption string.
What labels mean, from SalesforceAIResearch/DiffusionDPO at 5233e75 (train.py): label_0 is 1 where image 0 is preferred, 0 where image 1 is,
and 0.5 for a tie. A row without labels counts as undecided, as a tie does. The data themselves were not at hand.
"""

from alignbench.datasets.files import read
from alignbench.datasets.pairs import Cell, Choice, GivenPairs, Groups, Ties
from alignbench.datasets.shards import files_of
from alignbench.datasets.table import short
from alignbench.ranges import Count, Text

IMAGES, LABELS, CAPTION = ("jpg_0", "jpg_1"), ("label_0", "label_1"), "caption"
MEANT = {(1, 0): 0, (0, 1): 1, (0.5, 0.5): None, (None, None): None}  # which image is preferred


class PickAPic(GivenPairs):
    """Labels and captions are read at once, images when they are drawn, with the others of their row group."""

    datasets = ("Pick-a-Pic v1",)

    def __init__(self, *, path: Text, size: Count, ties: Ties):
        """path: a .parquet file, a folder of them, or a pattern; size, ties: as `PairTable`'s. Raises MissingAsset where there is no such
        file, ConfigError with file and row for one that is wrong; a damaged image only when it is drawn.
        """
        import pyarrow.parquet

        choices, groups = [], Groups(IMAGES)
        for file in files_of(path, ".parquet", f"method.pairs.path={path}"):
            table = read(file, str(file), (CAPTION, *LABELS))
            for column in (*IMAGES, *LABELS):
                table.need(column)
            with pyarrow.parquet.ParquetFile(file) as parquet:
                sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            places = [(group, row) for group, rows in enumerate(sizes) for row in range(rows)]
            captions = table.words(CAPTION)
            for number, (row, (group, at)) in enumerate(zip(table.rows, places, strict=True), 1):
                labels = tuple(row[label] for label in LABELS)
                if labels not in MEANT:
                    said = " and ".join(map(short, labels))
                    raise table.wrong(number, f"{' and '.join(LABELS)} are {said}; 1 and 0, 0 and 1, or 0.5 twice for a tie are wanted")
                preferred = MEANT[labels]
                cells = [Cell(groups, file, group, at, column) for column in IMAGES]
                win, lose = reversed(cells) if preferred == 1 else cells
                choices.append(Choice(win, lose, captions[number - 1], preferred is None, f"{file}, row {number}"))
        super().__init__(choices, size, ties, f"method.pairs.path={path}")
