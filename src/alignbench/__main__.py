"""The front door: `python -m alignbench`, or `alignbench`. Heavy imports happen only where a run begins."""

import difflib
import errno
import importlib
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
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
    "label": ("alignbench.label:label", "say which of a run's images are better, for method=d3po_human: label outputs/<run>"),
}
FLAGS = {
    "-m": "sweep: key=a,b or key=range(1,4) makes a job of each combination; all are checked before the first starts",
    "--cfg": "print the config that would run, and stop",
    "-h": "this text",
    "--version": "the version",
    "-sc": 'tab completion: eval "$(alignbench -sc install=bash)" (or zsh, fish)',
}
SPELLED = {"--multirun": "-m", "--help": "-h", "--shell-completion": "-sc"}
EXAMPLES = {
    "alignbench": "DDPO on the shipped sandbox model: a page of results in minutes",
    "alignbench reward=jpeg_compressibility epochs=20 seed=1": "another reward, longer, another seed",
    "alignbench -m reward=scene_judge,colour seed=0,1,2": "a sweep of six runs",
}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 a run failed, 2 wrong input, 3 something is missing, 128 + signum stopped by a signal."""
    try:
        return front_door(list(sys.argv[1:] if argv is None else argv))
    except ConfigError as error:
        return complain(error, 2)
    except MissingAsset as error:
        return complain(error, 3)
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
        return show([composed]) if "--cfg" in flags else run(composed)
    jobs = sweep(overrides)
    checked = [compose(job) for job in jobs]
    return show(checked) if "--cfg" in flags else run_all(jobs)


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


def run_all(jobs: list[list[str]]) -> int:
    """Each job in its own process, one after the other; a failed one does not stop the rest, a signal stops all."""
    child: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if child is not None and child.poll() is None:
            child.send_signal(signum)

    before = {signum: signal.signal(signum, forward) for signum in SIGNALS}
    failures = 0
    try:
        for index, job in enumerate(jobs, 1):
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a signal must not fall between the start of a job and its name
            if not received:
                # its own process group: a terminal's Ctrl-C reaches it once, through `forward`
                child = subprocess.Popen([sys.executable, "-m", "alignbench", *job], process_group=0, preexec_fn=_as_job)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            if received or child is None:
                break
            code = child.wait()
            failures += code != 0
            said = f"stopped by signal {received[-1]}" if received else f"failed, exit code {code}" if code else "done"
            print(f"[{index}/{len(jobs)}] {' '.join(job)}: {said}", flush=True)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return 128 + received[-1] if received else int(failures > 0)


def _as_job() -> None:
    """In the child, before it becomes the job: hear signals, and (Linux) die with the sweep rather than race with its successor."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
