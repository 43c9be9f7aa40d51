"""The front door: `python -m alignbench`, or `alignbench`. Heavy imports happen only where a run begins."""

import difflib
import errno
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignbench import __version__
from alignbench.config import GROUPS, ConfigError, MissingAsset, Stopped, choices, conf_folder

if TYPE_CHECKING:
    from alignbench.compose import Composed

VERBS = {  # verb -> (module:function of the words after it, what it does)
    "ls": ("alignbench.__main__:ls", "list groups and their choices: ls, ls methods"),
    "doctor": ("alignbench.doctor:doctor", "say what a run would miss, before it starts: doctor model=sd15 epochs=10"),
    "export": ("alignbench.export:export", "a run's weights as other programs load them, with a model card: export outputs/<run>"),
    "score": ("alignbench.scoring:score", "a judge's scores of a folder of images: score reward=colour images=DIR prompts=FILE"),
    "serve": ("alignbench.serve:serve", "offer a judge to other machines: serve reward=clip_score, used there as reward=remote"),
    "parity": (
        "alignbench.parity:parity",
        "compare native judges with the official packages in environments of their own: parity imagereward",
    ),
    "evaluate": (
        "alignbench.reevaluate:evaluate",
        "a run, or weights from elsewhere, on other prompts or by other judges: evaluate run=outputs/<run> eval=skills",
    ),
    "reproduce": (
        "alignbench.reproduce:reproduce",
        "make papers' tables again, with a verdict on each claim: reproduce ddpo_table1 tier=sandbox",
    ),
    "table": ("alignbench.table:table", "methods side by side, with intervals over seeds and prompts: table outputs"),
    "report": ("alignbench.reporting:report", "the page of many runs, or a run's own once more, from their files alone: report outputs"),
    "compare": ("alignbench.compare:compare", "two runs on the same test images, pair by pair: compare outputs/<run> outputs/<other>"),
    "status": ("alignbench.status:status", "what became of every job in a folder, what runs now and how long it will take: status outputs"),
    "label": ("alignbench.label:label", "say which of a run's images are better, for method=d3po_human: label outputs/<run>"),
}
FLAGS = {
    "-m": "sweep: key=a,b or key=range(1,4) makes a job of each combination; all are checked before the first starts",
    "--retry": "of a sweep: run the jobs that failed before, too",
    "--cfg": "print the config that would run, and stop",
    "-h": "this text",
    "--version": "the version",
    "-sc": 'tab completion: eval "$(alignbench -sc install=bash)" (or zsh, fish)',
}
SPELLED = {"--multirun": "-m", "--help": "-h", "--shell-completion": "-sc"}
EXAMPLES = {
    "alignbench": "DDPO on the shipped sandbox model: a page of results in minutes",
    "alignbench reward=jpeg_compressibility epochs=20 seed=1": "another reward, longer, another seed",
    "alignbench -m reward=scene_judge,colour seed=0,1,2 launcher.jobs=2": "six runs, two at a time; again: what is left",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 a run failed, 2 wrong input, 3 something is missing, 128 + signum stopped by a signal."""
    try:
        return front_door(list(sys.argv[1:] if argv is None else argv))
    except ConfigError as error:
        return complain(error, 2)
    except MissingAsset as error:
        return complain(error, 3)
    except Stopped as stopped:
        return complain(stopped, 128 + stopped.signum)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `alignbench ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def front_door(words: list[str]) -> int:
    flags = {SPELLED.get(word, word) for word in words if word.startswith("-")}
    overrides = [word for word in words if not word.startswith("-")]
    if "-sc" in flags:
        return complete(words)
    if wrong := sorted(flags - FLAGS.keys()):
        raise ConfigError(f"{wrong[0]}: no such flag; {near(wrong[0], [*FLAGS, *SPELLED])}")
    if "-h" in flags:
        print(usage())
        return 0
    if "--version" in flags:
        print(f"alignbench {__version__}")
        return 0
    if overrides and overrides[0] and "=" not in overrides[0] and overrides[0][0] not in "~+":
        return verb(overrides[0])(overrides[1:])

    from alignbench.compose import compose, sweep

    if "-m" not in flags:
        composed = compose(overrides)
        if "--cfg" in flags:
            return show([composed])
        if not composed.elsewhere:
            return run(composed)
    if "-m" in flags and "--cfg" not in flags and any(word.startswith("hparams_search") for word in overrides):
        from alignbench.search import search

        return search(overrides, retry="--retry" in flags)
    from alignbench.sweep import jobs_of, run_sweep

    jobs = jobs_of(sweep(overrides))
    return show([job.composed for job in jobs]) if "--cfg" in flags else run_sweep(jobs, retry="--retry" in flags)


def complain(error: BaseException, code: int, more: str = "") -> int:
    """One line on stderr, whatever the message holds."""
    text = " ".join(f"{error}{more}".split()) or type(error).__name__
    print("alignbench: " + "".join(each if each.isprintable() else "?" for each in text), file=sys.stderr)
    return code


def near(word: str, words: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, words, 1)
    return f"did you mean {found[0]}?" if found else f"there is {', '.join(words)}"


# --- verbs and texts


def verb(word: str) -> Callable[[list[str]], int]:
    if word not in VERBS:
        raise ConfigError(f"{word}: neither a verb nor key=value; {near(word, [*VERBS])}; a setting is {word}=<value>")
    module, function = VERBS[word][0].split(":")
    return getattr(importlib.import_module(module), function)


def ls(words: list[str]) -> int:
    if len(words) > 1:
        raise ConfigError(f"ls takes one group, not {len(words)} words; there is {', '.join(GROUPS)}")
    groups = [group for group in GROUPS if not words or words[0] in (group, f"{group}s")]
    if not groups:
        raise ConfigError(f"ls {words[0]}: no such group; {near(words[0], GROUPS)}")
    for group in groups:
        there = choices(group, conf_folder())
        width = max(map(len, there), default=0)
        lines = [f"  {name:<{width}}  {line}" for name, line in there.items()] or ["  (none yet)"]
        if group == "reward" and words:
            from alignbench.reward_table import reward_table

            lines = reward_table(there, conf_folder())
        print("\n".join([group, *lines]))
    return 0


def usage() -> str:
    def table(rows: dict[str, str]) -> str:
        width = max(map(len, rows))
        return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())

    conf = conf_folder()
    return f"""alignbench: compares ways of aligning text-to-image diffusion models with a reward, on one code path with one protocol.

usage: alignbench [group=choice | key=value ...] [-m]     (python -m alignbench is the same)
       alignbench <verb> ...

Groups and their choices (`alignbench ls` says what each is; defaults in {conf / "config.yaml"}):
{table({group: " ".join(choices(group, conf)) or "(none yet)" for group in GROUPS})}

Verbs:
{table({name: text for name, (_, text) in VERBS.items()})}

Flags:
{table(FLAGS)}

Examples:
{table(EXAMPLES)}

Results go to outputs/<method>-<model>-<reward>-<dataset>-s<seed>-<hash of the config>/: open report.html there. output=<folder> moves them.
The same command again continues an interrupted run and does not repeat a finished one."""


def complete(words: list[str]) -> int:
    """Hydra's own shell completion, on a task that is never run."""
    if len(words) != 2 or not re.fullmatch("(install|uninstall|query)=(bash|zsh|fish)", words[1]):
        raise ConfigError(f'{" ".join(words)}: not a completion command; write eval "$(alignbench -sc install=bash)" (or zsh, fish)')
    if words[1].startswith("query") and "COMP_LINE" not in os.environ:
        raise ConfigError(f'{" ".join(words)}: is for the shell to ask; write eval "$(alignbench -sc install=bash)"')
    import hydra

    def task(config: object) -> None: ...

    sys.argv = [sys.argv[0], *words]
    hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")(task)()
    return 0


def show(checked: "list[Composed]") -> int:
    import yaml

    print("---\n".join(yaml.safe_dump(composed.config, sort_keys=False, allow_unicode=True) for composed in checked), end="")
    return 0


# --- runs


def run(composed: "Composed") -> int:
    try:
        (composed.folder / "error.txt").unlink(missing_ok=True)
        from alignbench.run import execute

        return execute(composed)
    except (Exception, Stopped) as error:
        return failed(error, composed.folder)


def failed(error: BaseException, folder: Path) -> int:
    begun = os.path.isdir(folder)  # a Path would raise where the name is too long
    match error:
        case Stopped():
            return complain(error, 128 + error.signum)
        case MissingAsset():
            return complain(error, 3)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return complain(error, 3)
        case ConfigError():
            return complain(error, 2)
        case ValueError() if not begun:  # a constructor refused its arguments
            return complain(error, 2)
        case OSError() if not begun:
            return complain(error, 3)
    text = "".join(traceback.format_exception(error))
    where = folder / "error.txt"
    try:
        where.write_text(text, encoding="utf-8")
    except OSError:  # no folder yet, or no room in it
        print(text, file=sys.stderr)
        return complain(error, 1)
    return complain(error, 1, f" ({type(error).__name__}; the traceback is in {where})")


if __name__ == "__main__":
    sys.exit(main())
