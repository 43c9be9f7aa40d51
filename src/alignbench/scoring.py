"""`alignbench score reward=... images=DIR prompts=FILE`: a judge's score of every picture in a folder, as parquet."""

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignbench.compose import compose
from alignbench.config import ConfigError, MissingAsset
from alignbench.datasets.files import LINES, read
from alignbench.report.record import write_atomically

USAGE = (
    "alignbench score reward=<choice> images=<folder> [prompts=<file>] [to=<file>.parquet] [batch=16] [reward.key=value ...] "
    "[judging.key=value ...]"
)
NAMES, TEXTS = ("file_name", "image"), ("text", "prompt")  # as the Hub's image folders call their columns, and as our own runs do
KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def score(words: list[str]) -> int:
    """The exit code. Raises ConfigError for what the user gave wrongly, MissingAsset for weights that are not here."""
    given = {"images": "", "prompts": "", "to": "", "batch": "16"}
    given |= {key: value for key, _, value in (word.partition("=") for word in words) if key in given}
    rest = [word for word in words if word.partition("=")[0] not in given]
    if wrong := [word for word in rest if not re.match(r"(reward(=|\.)|judging\.)", word)]:
        raise ConfigError(f"score: {wrong[0]}: {USAGE}")
    if not given["images"] or not any(word.startswith("reward=") for word in rest):
        raise ConfigError(f"score: which judge, and which images? {USAGE}")
    if not re.fullmatch("[1-9][0-9]{0,4}", given["batch"]):
        raise ConfigError(f"score: batch={given['batch']}: a whole number of images from 1 to 99999 is wanted")
    folder = Path(given["images"])
    if not folder.is_dir():
        raise ConfigError(f"score: images={folder}: there is no such folder")
    rows = read_rows(folder, Path(given["prompts"]) if given["prompts"] else folder / "metadata.jsonl")
    composed = compose(rest)
    try:
        scores, identity = scored(composed.config, folder, rows, int(given["batch"]))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    name = composed.choices["reward"]
    to = Path(given["to"] or f"scores-{name}.parquet")
    write(to, name, rows, scores, identity)
    known = [each for each in scores if each is not None]
    mean = sum(known) / max(len(known), 1)
    spread = (sum((each - mean) ** 2 for each in known) / max(len(known), 1)) ** 0.5
    print(f"{name} of {len(known)} images{f', {len(rows) - len(known)} have no score' if len(known) < len(rows) else ''}")
    if known:
        print(f"mean {mean:.6g}   std {spread:.6g}   lowest {min(known):.6g}   highest {max(known):.6g}")
    print(f"scores: {to}")
    return 0


def read_rows(folder: Path, file: Path) -> list[tuple[str, str]]:
    """(image's name, prompt) of each picture to score. Raises ConfigError with the row that is wrong."""
    called = f"score: prompts={file}"
    if not file.exists():
        raise ConfigError(
            f"{called}: there is no such file; it is a .jsonl, .json, .csv or .parquet with {NAMES[0]} and {TEXTS[0]}, "
            "or a .txt with a line an image, in the order of their names"
        )
    table = read(file, called, {*NAMES, *TEXTS})
    if file.suffix.lower() == ".txt":
        names = sorted(each.name for each in folder.iterdir() if each.suffix.lower() in KINDS)
        if len(table.rows) != len(names):
            raise ConfigError(f"{called}: {len(table.rows)} lines for {len(names)} images in {folder}; a line an image is wanted")
        return list(zip(names, table.words(LINES[0]), strict=True))
    name, text = (next((each for each in wanted if each in table.columns), "") for wanted in (NAMES, TEXTS))
    if not name or not text:
        raise ConfigError(f"{called}: {' or '.join(NAMES)} and {' or '.join(TEXTS)} are wanted; there is {', '.join(table.columns)}")
    rows = []
    for number, row in enumerate(table.rows, 1):
        if file.suffix.lower() == ".parquet" and row[name] == "":  # a run's: of a picture that was not kept
            continue
        image, prompt = table.word(number, name), table.word(number, text)
        if Path(image).is_absolute() or ".." in Path(image).parts or not (folder / image).is_file():
            raise table.wrong(number, f"there is no image {image!r} in {folder}")
        rows.append((image, prompt))
    if not rows:
        raise ConfigError(f"{called}: it names no image")
    return rows


def scored(config: dict[str, Any], folder: Path, rows: list[tuple[str, str]], batch: int) -> tuple[list[float | None], dict[str, str]]:
    """Each picture's score, None where the judge has none and judging.on_error lets that pass; and who the judge is."""
    import torch

    from alignbench.experiment import guard_of, made
    from alignbench.meters import Meters
    from alignbench.rewards.judge import Judge

    told = {"seed": config["seed"], "epoch": 0}
    judge = Judge(made(config["reward"]), Meters(), guard_of(config, Path("."), told))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    judge.to(device)
    scores: list[float | None] = [None] * len(rows)
    for part in portions(folder, rows, batch, judge.reward.grouped):
        images = torch.stack([picture(folder / rows[row][0]) for row in part]).to(device)
        with torch.no_grad():
            found = judge.score(images, [rows[row][1] for row in part]).double().tolist()
        for row, value in zip(part, found, strict=True):
            scores[row] = None if value != value else value
        if sys.stderr.isatty():
            print(f"\rscored {sum(each is not None for each in scores)} of {len(rows)}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return scores, judge.identity


def portions(folder: Path, rows: list[tuple[str, str]], batch: int, grouped: bool) -> Iterator[list[int]]:
    """Rows to ask about at once: at most `batch` of one size; all of a prompt, where images are judged together."""
    from PIL import Image, UnidentifiedImageError

    sizes = []
    for number, (name, _) in enumerate(rows, 1):
        try:
            with Image.open(folder / name) as image:
                sizes.append(image.size)
        except (UnidentifiedImageError, OSError) as error:
            raise ConfigError(f"score: row {number}: {folder / name} is no image ({str(error).splitlines()[0]})") from None
    if grouped:
        for prompt in dict.fromkeys(prompt for _, prompt in rows):
            part = [row for row, (_, other) in enumerate(rows) if other == prompt]
            if len({sizes[row] for row in part}) > 1:
                raise ConfigError(f"score: the images of {prompt!r} are judged together and have different sizes; make them one size")
            yield part
        return
    for size in dict.fromkeys(sizes):
        own = [row for row, other in enumerate(sizes) if other == size]
        yield from (own[start : start + batch] for start in range(0, len(own), batch))


def picture(path: Path) -> Any:
    """[3,H,W] in [0,1]."""
    import numpy
    import torch
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = numpy.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:  # cut short, or damaged in its chunks
        raise ConfigError(f"score: {path} is damaged ({str(error).splitlines()[0]})") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def write(to: Path, name: str, rows: list[tuple[str, str]], scores: list[float | None], identity: dict[str, str]) -> None:
    """image, prompt and the score under the judge's name; who judged is in the file's metadata, under `alignbench`."""
    import pyarrow
    import pyarrow.parquet

    columns = {
        "image": [image for image, _ in rows],
        "prompt": [prompt for _, prompt in rows],
        name: pyarrow.array(scores, pyarrow.float64()),
    }
    table = pyarrow.table(columns).replace_schema_metadata({"alignbench": json.dumps(identity, sort_keys=True)})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(to, buffer.getvalue())
    except OSError as error:
        raise MissingAsset(f"score: to={to}: cannot be written ({error.strerror or error})") from error
