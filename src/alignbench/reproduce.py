"""`alignbench reproduce [TABLE ...]`: makes tables of papers again, from their runs alone; what is done already is not done again."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbench import __version__
from alignbench.compose import RESULTS_VERSION, Composed, compose, reseeded
from alignbench.config import ConfigError, MissingAsset
from alignbench.evaluation.compared import Run
from alignbench.papers import TIERS, PaperTable, tables
from alignbench.report.record import Record, read_about, read_samples, write_atomically
from alignbench.report.reproduced import latex, markdown, page, rows_csv, verdicts
from alignbench.reproduction import Row, reproduced
from alignbench.shortage import shortages
from alignbench.signatures import nearest
from alignbench.sweep import Job, duration, run_jobs

DEFAULTS = {"tier": "sandbox", "seeds": "", "output": "outputs/reproduce", "to": "experiments", "retry": "false"}
USAGE = (
    "alignbench reproduce [TABLE ...] [tier=sandbox|paper] [seeds=0,1,2] [output=FOLDER] [to=FOLDER] [retry=true] "
    "[launcher=local launcher.jobs=2]"
)
ROOT = Path("experiments")
FORMAT = 2  # raised by hand when the same runs give other files
MADE = ("table.md", "table.tex", "table.csv", "report.html", "table.json")  # the last says what the others were made of


@dataclass(frozen=True)
class Asked:
    names: list[str]
    tier: str
    seeds: list[int] | None
    output: Path
    to: Path
    retry: bool
    launcher: list[str]  # words of that group


@dataclass(frozen=True)
class Work:
    """A table and what it needs: of each row its words and its runs, one a seed."""

    table: PaperTable
    rows: dict[str, tuple[list[str], list[Composed]]]

    @property
    def runs(self) -> dict[str, Composed]:
        return {each.hash: each for _, runs in self.rows.values() for each in runs}


def reproduce(words: list[str]) -> int:
    """The exit code: 0, or 1 where a run failed or was killed. Raises ConfigError, MissingAsset, Stopped."""
    asked = _asked(words)
    known: dict[tuple[str, ...], Composed] = {}
    works = [Work(table, _rows(table, asked, known)) for table in tables(ROOT, asked.names)]
    runs = {each.hash: each for work in works for each in work.runs.values()}
    if asked.tier == "paper":
        _enough(works)
    states = _run(works, runs, asked)
    if unfinished := [key for key in runs if states[key] not in ("done", "failed")]:
        print(f"{len(runs) - len(unfinished)} of {len(runs)} runs are done; the same command continues", file=sys.stderr)
        return 1
    read: dict[str, Run] = {}
    wrong: list[str] = []
    for work in works:
        try:
            print(_written(work, states, read, asked), flush=True)
        except ValueError as error:  # one table's runs do not fit together; the others are made all the same
            wrong.append(f"{work.table.folder}: {error}")
    if wrong:
        raise ConfigError("; ".join(wrong))
    return int("failed" in states.values())


def _asked(words: list[str]) -> Asked:
    given, launcher = dict(DEFAULTS), []
    for word in (word for word in words if "=" in word):
        key, _, value = word.partition("=")
        if key.partition(".")[0] == "launcher":
            launcher.append(word)
        elif key not in DEFAULTS or not value:
            raise ConfigError(f"reproduce: {word}: {nearest(key, DEFAULTS) if key not in DEFAULTS else 'no value'}; {USAGE}")
        else:
            given[key] = value
    if given["tier"] not in TIERS:
        raise ConfigError(f"reproduce: tier={given['tier']}: no such tier; {nearest(given['tier'], TIERS)}")
    if given["retry"] not in ("true", "false"):
        raise ConfigError(f"reproduce: retry={given['retry']}: write true or false")
    seeds = given["seeds"].split(",") if given["seeds"] else []
    if not all(each.isascii() and each.isdigit() for each in seeds) or len({int(each) for each in seeds}) != len(seeds):
        raise ConfigError(f"reproduce: seeds={given['seeds']}: write different whole numbers, as 0,1,2")
    names = [word for word in words if "=" not in word]
    where = Path(given["output"]), Path(given["to"])
    return Asked(names, given["tier"], [int(each) for each in seeds] or None, *where, given["retry"] == "true", launcher)


def _rows(table: PaperTable, asked: Asked, known: dict[tuple[str, ...], Composed]) -> dict[str, tuple[list[str], list[Composed]]]:
    """known: what has been composed already, by its words; rows that tables share are composed once."""
    found = {}
    for name, (words, seeds) in table.rows(asked.tier, asked.seeds).items():
        where = f"{table.folder / 'runs.yaml'}: {asked.tier}.rows.{name}"
        if own := next((word for word in words if word.startswith(("seed=", "output="))), None):
            raise ConfigError(f"{where}: {own}: seeds and the output are not a row's to say; take it out")
        try:
            runs = [_composed(_words(words, seed, asked), known) for seed in seeds]
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        found[name] = (words, runs)
    return found


def _words(words: Sequence[str], seed: int, asked: Asked) -> tuple[str, ...]:
    return *words, f"seed={seed}", f"output={asked.output}"


def _composed(words: tuple[str, ...], known: dict[tuple[str, ...], Composed]) -> Composed:
    """A quarter of a second where nothing is known, far less where it is with another seed."""
    if words not in known:
        *own, seed, output = words
        sister = None if any("${" in word for word in own) else known.get((*own, "seed=", output))
        known[words] = reseeded(sister, int(seed.removeprefix("seed="))) if sister else compose(words)
        known.setdefault((*own, "seed=", output), known[words])
    return known[words]


# --- before and while it runs


def _enough(works: Sequence[Work]) -> None:
    """Say what each table costs and what it misses; MissingAsset where one misses something."""
    lacking = []
    for work in works:
        paper = work.table.runs.paper
        hours = f"{paper.gpu_hours:g} GPU-hours" if paper.gpu_hours is not None else "GPU-hours not known"
        source = f" ({paper.gpu_hours_source})" if paper.gpu_hours_source else ""
        print(f"{work.table.name}: {work.table.runs.title}, paper tier: {len(work.runs)} runs, {hours}{source}", flush=True)
        rows = shortages(list(work.runs.values()))
        for row in rows:
            remedy = f"\n           -> {row.remedy}" if row.remedy else ""
            print(f"  {row.state:<7}  {row.name}: {row.what}{remedy}", flush=True)
        if any(row.state == "missing" for row in rows):
            lacking.append(work.table.name)
    if lacking:
        raise MissingAsset(f"reproduce: tier=paper: {', '.join(lacking)}: not all that is needed is here, as said above; nothing was run")


def _run(works: Sequence[Work], runs: dict[str, Composed], asked: Asked) -> dict[str, str]:
    """How each run ended, by its hash. No launcher is asked where all are done. Raises Stopped where a signal ended them."""
    words = {
        each.hash: _words(own, each.config["seed"], asked) for work in works for own, composed in work.rows.values() for each in composed
    }
    first = next(iter(words.values()), ())
    launcher = compose([*first, *asked.launcher]).config["launcher"]
    done = {key for key, each in runs.items() if Record(each.folder).finished}
    shared = sum(count > 1 for count in Counter(key for work in works for key in work.runs).values())
    names = ", ".join(work.table.name for work in works)
    print(
        f"{asked.tier} tier, {len(works)} table{'s' * (len(works) > 1)} ({names}): {len(runs)} runs"
        f"{f', {shared} of them needed by more than one table' if shared else ''}; {len(done)} done already; {_time(runs, done)}",
        flush=True,
    )
    if len(done) == len(runs):
        return dict.fromkeys(runs, "done")
    return run_jobs([Job(list(words[key]), each) for key, each in runs.items()], launcher, retry=asked.retry)


def _time(runs: dict[str, Composed], done: set[str]) -> str:
    """How long the rest takes, by the runs of this output that are done and have said how long they took."""
    took = []
    for key in done:
        file = runs[key].folder / "timing.json"
        if file.is_file():
            took.append(sum(json.loads(file.read_bytes())["seconds"].values()))
    left = len(runs) - len(done)
    if not left:
        return "nothing to run"
    if not took:
        return f"how long {left} runs take is not known before one of them is done"
    return f"{left} runs are left, about {duration(left * sum(took) / len(took))} one after the other"


# --- the files of a table


def _written(work: Work, states: dict[str, str], read: dict[str, Run], asked: Asked) -> str:
    """Make the files of a table, unless they are of the very same inputs; the line that says what came out."""
    to = asked.to / work.table.name
    failed = {key for key in work.runs if states[key] == "failed"}
    inputs = _inputs(work, failed, asked)
    if (made := _made_before(to, inputs)) is None:
        for key, each in work.runs.items():
            if key not in failed and key not in read:
                about = read_about(each.folder)
                read[key] = Run(about, [row for split in ("test", "validation") for row in read_samples(each.folder, split)])
        whole = {key: run for key, run in read.items() if key not in failed}
        made = reproduced(work.table, asked.tier, {name: Row(words, runs, whole) for name, (words, runs) in work.rows.items()})
        made |= {"inputs": inputs}
        files = _files(made, [each.folder for each in work.runs.values() if each.choices["method"] != "reference" and each.folder.is_dir()])
        try:
            to.mkdir(parents=True, exist_ok=True)
            for name in MADE:
                write_atomically(to / name, files[name].encode())
        except OSError as error:
            raise MissingAsset(f"reproduce: to={to}: cannot be written ({error.strerror or error})") from error
    return f"{work.table.name}: {verdicts(made)} -> {to / 'table.md'}"


def _files(made: dict[str, Any], runs: list[Path]) -> dict[str, str]:
    """What is written, by name; runs: the folders of those that trained or tried to."""
    return {
        "table.md": markdown(made),
        "table.tex": latex(made),
        "table.csv": rows_csv(made),
        "report.html": page(made, runs),
        "table.json": json.dumps(made, indent=1, allow_nan=False) + "\n",  # in its own order, which is that of the tables
    }


def _inputs(work: Work, failed: set[str], asked: Asked) -> str:
    """A digest of all that the files depend on. ValueError where a run's images are gone."""
    runs = {
        name: [[each.config["seed"], None if each.hash in failed else _digest(each.folder / "samples.parquet")] for each in own]
        for name, (_, own) in work.rows.items()
    }
    said = [FORMAT, RESULTS_VERSION, __version__, asked.tier, runs, [hashlib.sha256(each).hexdigest() for each in work.table.sources]]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise ValueError(f"{file} is missing; move that folder away, and the same command makes the run again") from None


def _made_before(to: Path, inputs: str) -> dict[str, Any] | None:
    if not all((to / name).is_file() for name in MADE):
        return None
    try:
        made = json.loads((to / "table.json").read_bytes())
    except ValueError:
        return None
    return made if isinstance(made, dict) and made.get("inputs") == inputs else None
