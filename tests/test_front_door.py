"""The front door: wrong input is one line (R3), a start is quick (R14), `auto` is resolved, a run has one identity."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from alignbench import __main__ as door
from alignbench import sweep as sweeping
from alignbench.compose import compose, sweep
from alignbench.config import ConfigError, MissingAsset, Stopped, conf_folder
from alignbench.signatures import constructor_of

TOUCH = "command: touch sentinel"

# words of a command line, and what its one line on stderr must name: the key, then the file or the remedy
WRONG = [
    (["method=ddppo"], ["method=ddppo", "conf/method", "did you mean ddpo?"]),
    (["metod=ddpo"], ["metod", "conf/config.yaml", "did you mean method?"]),
    (["method="], ["method=", "conf/method", "ddpo_sf"]),
    (["method=ddpo,ddpo_sf"], ["method", "add -m"]),
    (["method=../eval/default"], ["method=../eval/default", "no such choice"]),
    (["method.clp=0.1"], ["method.clp", "conf/method/ddpo.yaml", "did you mean method.clip?"]),
    (["method.clip=abc"], ["method.clip", "conf/recipe/ddpo@sandbox.yaml", "a number > 0"]),
    (["method.clip=-1"], ["method.clip", ".yaml", "a number > 0"]),
    (["method.images=1.5"], ["method.images", ".yaml", "a whole number >= 1"]),
    (["method.form=importance_sample"], ["method.form", "conf/method/ddpo.yaml", "did you mean importance_sampled?"]),
    (["method.optimizer.lr=fast"], ["method.optimizer.lr", ".yaml", "a number > 0"]),
    (["method.optimizer._target_=torch.optim.AdamW"], ["method.optimizer._target_", "did you mean torch.optim.adamw.AdamW?"]),
    (["method._target_=os.system", f"++method.{TOUCH.replace(': ', '=')}"], ["method._target_", "conf/method/ddpo.yaml", "refused"]),
    (["method._target_=builtins.eval"], ["method._target_", "refused", "torch.optim."]),
    (["method._target_=alignbench.methods.ddpo.DDPP"], ["method._target_", "did you mean alignbench.methods.ddpo.DDPO?"]),
    (["method._target_=alignbench.something.nonexistent"], ["method._target_", "alignbench.methods."]),
    ([f"model.x.y={{z: [{{_target_: os.system, {TOUCH}}}]}}"], ["model.x.y.z[0]._target_", "conf/model/sandbox.yaml", "refused"]),
    ([f"eval.judges=[{{_target_: subprocess.run, {TOUCH}}}]"], ["eval.judges[0]._target_", "conf/eval/default.yaml", "refused"]),
    (["method._args_=[1]"], ["method._args_", "not available"]),
    (["method.track=one_step"], ["method.track", "a fact"]),
    (["seed=abc"], ["seed", "conf/config.yaml", "a whole number >= 0"]),
    (["seed=-1"], ["seed", "conf/config.yaml", "a whole number >= 0"]),
    (["seed=true"], ["seed", "True", "a whole number >= 0"]),
    (["seed=???"], ["seed", "conf/config.yaml", "no value yet"]),
    (["seed=${nope}"], ["seed", "conf/config.yaml", "'nope' not found"]),
    (["seed=${oc.env:HOME}"], ["seed", "${oc.env:HOME}", "outside the config"]),
    (["seed.x=1"], ["seed.x", "conf/config.yaml", "did you mean seed?"]),
    (["seed=1", "seed=2"], ["seed", "given twice"]),
    (["eval.grid=[1,2"], ["eval.grid=[1,2", "key=value"]),
    (["a=b=c="], ["a=b=c=", "key=value"]),
    ([""], ["''", "key=value"]),
    (["lss"], ["lss", "did you mean ls?"]),
    (["--hepl"], ["--hepl", "did you mean --help?"]),
    (["~method"], ["~method", "deleted", "alignbench ls method"]),
    (["+new=3"], ["new", "conf/config.yaml", "no such key"]),
    (["hydra.run.dir=elsewhere"], ["hydra.run.dir", "output=<folder>"]),
    (["foo/bar=x"], ["foo/bar", "no such group"]),
    (["guidance=atuo"], ["guidance", "conf/config.yaml", "did you mean auto?"]),
    (["budget.reward_queries=-5"], ["budget.reward_queries", "conf/budget/none.yaml", "a whole number >= 1 | null"]),
    (["-m", "seed=0,x"], ["seed", "'x'", "a whole number >= 0"]),
]

GADGETS = [
    "os.system",
    "builtins.exec",
    "builtins.__import__",
    "subprocess.Popen",
    "subprocess.check_output",
    "pickle.loads",
    "shutil.rmtree",
    "importlib.import_module",
    "pathlib.Path.unlink",
    "hydra.utils.get_method",
    "torch.load",
    "torch.hub.load",
    "runpy.run_path",
    "sys.exit",
    "alignbench",
    "alignbench.__main__.main",
    "alignbench.run.execute",
    "alignbench.methods.ddpo.torch.load",
    "alignbench.methods.base.torch.hub.load",
    "torch.optim.sys.modules",
    "torch.optim.adamw.torch.hub.load",
    "torch.optim.adamw.cast",
    "lightning.pytorch.trainer.trainer.os.system",
]
WRONG_TOO = [
    *(([f"method.optimizer._target_={gadget}"], ["method.optimizer._target_", "conf/method/ddpo.yaml"]) for gadget in GADGETS),
    *(
        ([f"{group}._target_=os.system"], [f"{group}._target_", "refused"])
        for group in ("model", "sampler", "reward", "dataset", "trainer")
    ),
    *(([f"{group}._target_=os.system"], [f"{group}._target_", "refused"]) for group in ("eval", "budget", "lora")),
    *(([f"{group}=xyzzy"], [f"{group}=xyzzy", f"conf/{group}", "no such choice"]) for group in ("model", "sampler", "reward", "dataset")),
    *(([f"{group}=xyzzy"], [f"{group}=xyzzy", f"conf/{group}"]) for group in ("eval", "budget", "trainer", "recipe", "experiment")),
    *(([f"{group}.xyzzy=1"], [f"{group}.xyzzy", "no such key"]) for group in ("model", "sampler", "reward", "dataset", "trainer", "lora")),
    *(([f"~{key}"], [f"~{key}", "deleted"]) for key in ("model", "seed", "method.clip")),
    *(
        ([word], [key])
        for word, key in [("=3", "'=3'"), ("seed==1", "seed==1"), ("seed=[", "seed=["), ("seed=}", "seed=}"), ("a..b=1", "a..b=1")]
    ),
    *(([word], ["key=value"]) for word in ("1=2", "method[0]=1", ".a=1", "seed=${epochs", "se\ned=1", "seed=\x1b[31m", "é=1", "seed='1")),
    *(([f"seed={value}"], ["seed", "conf/config.yaml"]) for value in ("", "null", "1.5", "nan", "inf", "[1]", "{a: 1}", "'7'", "${seed}")),
    *(([f"method.clip={value}"], ["method.clip", "a number > 0"]) for value in ("0", "nan", "inf", "null", "true", "[1]", "{a: 1}", "''")),
    *(([f"trainer.{word}"], [f"trainer.{word.split('=')[0]}"]) for word in ("precision=bf16", "devices=0", "threads=-1", "micro_batch=0")),
    *(
        ([f"trainer.{word}"], [f"trainer.{word.split('=')[0]}"])
        for word in ("accelerator=gpuu", "max_epochs=3", "logger=true", "callbacks=[]")
    ),
    *(
        ([f"eval.{word}"], [f"eval.{word.split('=')[0]}"])
        for word in ("images=1", "prompts=1", "every=-1", "replicates=5", "judges=3", "batch=a")
    ),
    (["method=ddpo", "method=ddpo_sf"], ["method", "given twice"]),
    (["method@x=ddpo"], ["method", "package"]),
    (["method=[ddpo,ddpo_sf]"], ["method", "no such choice"]),
    (["method=null"], ["method=null", "no such choice"]),
    (["method.policy={_target_: alignbench.policy.Policy}"], ["method.policy._target_", "not for a config"]),
    (["method.policy=1"], ["method.policy", "no object"]),
    (["method.micro_batch=3"], ["method.micro_batch", "trainer.micro_batch"]),
    (["method._partial_=true"], ["method._partial_", "torch.optim only"]),
    (["method._recursive_=false"], ["method._recursive_", "not available"]),
    (["method._convert_=all"], ["method._convert_", "not available"]),
    (["method.optimizer=adam"], ["method.optimizer", "name a class"]),
    (["method.optimizer.lr=-1"], ["method.optimizer.lr", "a number > 0"]),
    (["method.optimizer.betas=[0.9,1.0]"], ["method.optimizer.betas", "< 1"]),
    (["method._target_=alignbench.samplers.ddim.DDIM"], ["method._target_", "alignbench.methods."]),
    (["model.path={_target_: os.system, command: touch sentinel}"], ["model.path._target_", "refused"]),
    (["model.tracks={}"], ["model.tracks", "a fact"]),
    (["epochs=1,2"], ["epochs", "add -m"]),
    (["epochs=range(1,3)"], ["epochs", "add -m"]),
    (["seed=glob(*)"], ["seed", "list the values"]),
    (["-m", "lora.alpha=interval(0,1)"], ["lora.alpha", "list the values"]),
    (["-m", "seed=range(0,1000000)"], ["seed", "more than 1000 jobs"]),
    (["-m", "method=ddpo,ddppo"], ["method=ddppo", "did you mean ddpo?"]),
    (["lora=3"], ["lora", "{rank, alpha, targets}"]),
    (["lora={rank: 3, alfa: 2}"], ["lora.alfa", "did you mean lora.alpha?"]),
    (["hydra/launcher=joblib"], ["hydra/launcher", "fixed"]),
    (["output="], ["output", "conf/config.yaml"]),
    (["output=" + "x" * 20_000], ["20007 characters"]),
    (["seed=" + "[" * 4000 + "]" * 4000], ["seed=[[", "nested too deeply"]),
    (["lora._target_=alignbench.rewards.colour.Colour"], ["lora._target_", "no such key"]),
    (["ls", "xyzzy"], ["ls xyzzy", "no such group"]),
    (["-sc", "install=csh"], ["install=csh", "zsh"]),
    (["seed=1", "ddpo"], ["'ddpo'", "key=value"]),
]


def one_line(error: str, named: list[str]) -> None:
    assert error.count("\n") == 1, error
    assert error.endswith("\n")
    assert all(each.isprintable() for each in error[:-1])
    for each in named:
        assert each in error, f"{each!r} not in {error!r}"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """What would have been run, from an empty folder."""
    started: list[object] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(door, "run", lambda composed: started.append(composed) or 0)
    monkeypatch.setattr(sweeping, "run_sweep", lambda jobs, retry: started.append(jobs) or 0)
    return started


@pytest.mark.parametrize("words, named", WRONG, ids=lambda each: " ".join(each)[:60] if isinstance(each, list) else None)
def test_wrong_input_is_one_line(words: list[str], named: list[str], ran: list, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert door.main(words) == 2
    output, error = capsys.readouterr()
    one_line(error, named)
    assert (output, ran, list(tmp_path.iterdir())) == ("", [], [])


def test_right_input_runs(ran: list, capsys: pytest.CaptureFixture) -> None:
    """The control of the test above: the same way, nothing wrong."""
    assert door.main(["seed=3", "method.clip=0.5"]) == 0
    assert [composed.config["seed"] for composed in ran] == [3]
    assert capsys.readouterr() == ("", "")
    assert door.main(["-m", "seed=0,1", "guidance=range(1,3)"]) == 0
    assert [job.words for job in ran[1]] == [
        ["seed=0", "guidance=1"],
        ["seed=0", "guidance=2"],
        ["seed=1", "guidance=1"],
        ["seed=1", "guidance=2"],
    ]


def test_wrong_lists_are_whole() -> None:
    words = [tuple(words) for words, _ in (*WRONG, *WRONG_TOO)]
    assert len(WRONG) >= 40
    assert len(set(words)) == len(words) >= 120


@pytest.mark.slow
def test_wrong_input_as_processes(tmp_path: Path) -> None:
    """R3: 120 command lines, each a process: exit 2, one line, under 3 s, no file made, torch never imported."""
    taken = []
    for words, named in (*WRONG, *WRONG_TOO):
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "alignbench", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        taken.append(time.monotonic() - started)
        assert (done.returncode, done.stdout) == (2, ""), (words, done)
        one_line(done.stderr, named)
        assert list(tmp_path.iterdir()) == [], words
    taken.sort()
    assert taken[len(taken) // 2] < 3
    assert taken[-1] < 10  # the machine may be busy for a moment


# --- start-up


def imported(words: list[str], cwd: Path, **environment: str) -> tuple[subprocess.CompletedProcess, set[str]]:
    """The console script in a process, and the modules it imported."""
    code = "import sys; sys.argv[0] = 'alignbench'; from alignbench.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-X", "importtime", "-c", code, *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, env=os.environ | environment)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "alignbench.config" in modules  # the listing works
    return done, modules


QUERY = {"COMP_LINE": "alignbench method=dd"}
HEAVY = {"torch", "lightning", "diffusers", "transformers", "numpy"}


@pytest.mark.parametrize(
    "words, environment, says, light",
    [
        (["--help"], {}, "Examples:", True),
        (["ls"], {}, "  ddpo_sf ", True),
        (["ls", "methods"], {}, "  ddpo_sf ", True),
        (["--version"], {}, "alignbench 0", True),
        (["-sc", "install=bash"], {}, "complete -o nospace -o default -F hydra_bash_completion alignbench", False),
        (["-sc", "query=bash"], QUERY, "method=ddpo method=ddpo_sf", False),
        (["method=dppo"], {}, "", False),
        (["--cfg"], {}, "seed: 0", False),
    ],
    ids=["help", "ls", "ls methods", "version", "completion", "query", "wrong", "cfg"],
)
def test_starts_without_torch(words: list[str], environment: dict, says: str, light: bool, tmp_path: Path) -> None:
    done, modules = imported(words, tmp_path, **environment)
    assert says in done.stdout
    assert done.returncode == (0 if says else 2)
    assert not modules & HEAVY
    assert light == ("omegaconf" not in modules)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["ls"], ["ls", "methods"], ["--version"], ["-sc", "query=bash"]], ids=" ".join)
def test_starts_within_a_second(words: list[str], tmp_path: Path) -> None:
    """R14. The best of three: the rest is the machine's other work."""
    taken = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "alignbench", *words], cwd=tmp_path, capture_output=True, check=True, env=os.environ | QUERY)
        taken.append(time.monotonic() - started)
    assert min(taken) < 1


def test_ls_lists_every_choice(capsys: pytest.CaptureFixture) -> None:
    assert door.main(["ls"]) == 0
    listed = capsys.readouterr().out
    files = list(conf_folder().glob("*/*.yaml"))
    assert len(files) > 10
    for file in files:
        assert re.search(rf"^  {re.escape(file.stem)} +\S", listed, re.MULTILINE), f"{file} says nothing of itself"


def test_cfg_prints_what_would_run(ran: list, capsys: pytest.CaptureFixture) -> None:
    assert door.main(["--cfg", "seed=5"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == compose(["seed=5"]).config
    assert ran == []


# --- composition


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return Path(shutil.copytree(conf_folder(), tmp_path / "conf"))


def write(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")


def test_auto_follows_the_model_and_the_user_wins() -> None:
    tracks = yaml.safe_load((conf_folder() / "model" / "sandbox.yaml").read_text())["tracks"]["multi_step"]
    composed = compose([])
    assert composed.choices["sampler"] == tracks["samplers"][0] == "ddim"
    assert composed.config["sampler"]["_target_"] == "alignbench.samplers.ddim.DDIM"
    assert (composed.config["adapter"], composed.track) == (tracks["adapter"], "multi_step")
    assert composed.config["guidance"] == composed.config["sampler"]["guidance"] == tracks["guidance"]

    chosen = compose(["sampler.steps=7", "guidance=1.5", "adapter=lora"]).config
    assert (chosen["sampler"]["steps"], chosen["sampler"]["guidance"], chosen["adapter"]) == (7, 1.5, "lora")
    assert compose(["sampler=ddim"]).hash == composed.hash


def test_impossible_pairs_name_the_possible_ones(conf: Path) -> None:
    numbers = "steps: 1\neta: 0.0\nguidance: ${guidance}\ndeterministic: 0\n"
    write(conf / "sampler" / "leap.yaml", f"# one step\n_target_: alignbench.samplers.ddim.DDIM\n{numbers}")
    with pytest.raises(ConfigError, match=r"sampler=leap .*model=sandbox has other samplers; choose ddim, or leave it auto"):
        compose(["sampler=leap"], conf)
    method = (conf / "method" / "ddpo.yaml").read_text()
    write(conf / "method" / "jump.yaml", method.replace("multi_step", "few_step"))
    with pytest.raises(ConfigError, match=r"is few_step, which model=sandbox is not; choose model=sandbox_four_step\|.* or method="):
        compose(["method=jump"], conf)
    model = yaml.safe_load((conf / "model" / "sandbox.yaml").read_text())
    model["tracks"]["few_step"] = {"samplers": ["leap"], "adapter": "lora", "guidance": 0.0}
    write(conf / "model" / "leaper.yaml", "# leaps\n" + yaml.safe_dump(model))
    composed = compose(["method=jump", "model=leaper", "epochs=1"], conf)
    assert (composed.choices["sampler"], composed.config["adapter"], composed.config["guidance"]) == ("leap", "lora", 0)
    with pytest.raises(ConfigError, match=r"choose model=leaper\|sandbox_four_step\|.* or method="):
        compose(["method=jump"], conf)


def test_only_what_does_not_train_has_no_epochs() -> None:
    assert compose(["method=reference"]).config["epochs"] == 0
    with pytest.raises(ConfigError, match=r"epochs=0: method=reference does not train; take it out"):
        compose(["method=reference", "epochs=0"])
    with pytest.raises(ConfigError, match=r"epochs .*0 is no value for it; method=ddpo trains"):
        compose(["method=ddpo", "epochs=0"])


def test_recipe_then_experiment_then_user(conf: Path) -> None:
    recipe = yaml.safe_load((conf / "recipe" / "ddpo@sandbox.yaml").read_text())
    assert compose([], conf).config["epochs"] == recipe["epochs"]
    assert compose(["epochs=2"], conf).config["epochs"] == 2
    paper = yaml.safe_load((conf / "method" / "ddpo.yaml").read_text())
    assert compose(["recipe=none", "epochs=2"], conf).config["method"]["images"] == paper["images"] != recipe["method"]["images"]

    write(conf / "recipe" / "ddpo_sf@gaussian.yaml", "# @package _global_\n# a pair\nepochs: 77\nsampler: {steps: 9}\n")
    write(
        conf / "experiment" / "trial.yaml",
        "# @package _global_\n# a trial\ndefaults:\n  - override /method: ddpo_sf\n  - override /model: gaussian\n"
        "seed: 4\nsampler: {steps: 8}\n",
    )
    composed = compose(["experiment=trial"], conf)
    assert composed.choices["recipe"] == "ddpo_sf@gaussian"
    assert (composed.config["epochs"], composed.config["seed"], composed.config["sampler"]["steps"]) == (77, 4, 8)
    assert compose(["experiment=trial", "seed=5", "sampler.steps=3"], conf).config["sampler"]["steps"] == 3
    assert compose(["experiment=trial", "method=ddpo", "epochs=1"], conf).choices["method"] == "ddpo"
    with pytest.raises(ConfigError, match=r"sampler\.steps \(conf/experiment/trial\.yaml\)"):
        compose(["experiment=trial", "sampler.steps=0"], conf)


@pytest.mark.parametrize(
    "file, text, line",
    [
        (
            "reward/bad.yaml",
            "# bad\n_target_: os.system\ncommand: touch sentinel\n",
            r"reward\._target_ \(conf/reward/bad\.yaml\): 'os\.system' is refused",
        ),
        (
            "reward/bad.yaml",
            "# bad\n_target_: alignbench.rewards.colour.Colour\nwidth: ${oc.env:HOME}\n",
            r"reward\.width .* outside the config",
        ),
        ("reward/bad.yaml", "# bad\n_target_: alignbench.rewards.colour.Colour\n", r"reward\.width \(conf/reward/bad\.yaml\): missing"),
        ("reward/bad.yaml", "# bad\n_target_: alignbench.rewards.colour.Colour\nwidth: ???\n", r"reward\.width .* no value yet"),
        (
            "reward/bad.yaml",
            "# bad\n_target_: alignbench.rewards.colour.Colour\nwidth: [1\n",
            r"^conf/reward/bad\.yaml, line \d+: not YAML",
        ),
        (
            "reward/bad.yaml",
            "# bad\nwidth: 1\n",
            r"reward\._target_ \(conf/reward/bad\.yaml\): missing; name a class under alignbench\.rewards\.",
        ),
        ("reward/bad.yaml", "# bad\n", r"reward"),
        ("recipe/ddpo@sandbox.yaml", "# no header\nepochs: 3\n", r"recipe \(conf/recipe/ddpo@sandbox\.yaml\): .*# @package _global_"),
    ],
)
def test_wrong_files(file: str, text: str, line: str, conf: Path) -> None:
    write(conf / file, text)
    with pytest.raises(ConfigError, match=line) as raised:
        compose(["reward=bad"] if file.startswith("reward") else [], conf)
    assert "\n" not in str(raised.value)
    assert not Path("sentinel").exists()


def test_constructors_are_read_with_their_base() -> None:
    taken = constructor_of("alignbench.methods.ddpo.DDPO")
    assert taken["clip"].required
    assert taken["optimizer"].kind == taken["policy"].kind == "object"  # of methods/base.py
    assert taken["micro_batch"].given
    assert "base" not in taken


def test_identity(conf: Path, tmp_path: Path) -> None:
    plain = compose([], conf)
    for words in (
        ["output=/elsewhere"],
        ["trainer.threads=1"],
        ["trainer.micro_batch=8"],
        ["trainer.accelerator=cpu"],
        ["eval.batch=8"],
        ["seed=0"],
        ["guidance=3"],
    ):
        assert compose(words, conf).hash == plain.hash, words
    for words in (["seed=1"], ["guidance=2"], ["method.clip=0.5"], ["eval.images=6"], ["trainer.precision=bf16-mixed"], ["reward=colour"]):
        assert compose(words, conf).hash != plain.hash, words
    assert compose(["guidance=2"], conf).hash == compose(["guidance=2.0"], conf).hash
    assert plain.folder == Path("outputs") / f"ddpo-sandbox-scene_judge-scenes-s0-{plain.hash[:10]}"
    moved = compose(["seed=1", "output=/elsewhere", "trainer.threads=1"], conf)
    assert moved.folder.parent == Path("/elsewhere")
    assert moved.command == "python -m alignbench seed=1"
    assert "output" not in moved.identity
    assert not {"threads", "micro_batch", "devices"} & moved.identity["trainer"].keys()


def test_identity_holds_the_weights(conf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    words = [f"model.path={folder}"]
    (folder / "model_index.json").write_text("{}")
    (folder / "unet.safetensors").write_bytes(b"1")
    code = f"from pathlib import Path; from alignbench.compose import compose; print(compose({words!r}, Path({str(conf)!r})).hash)"
    hashes = []
    for content in (b"1", b"2", b"1"):
        (folder / "unet.safetensors").write_bytes(content)
        hashes.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert hashes[0] == hashes[2] != hashes[1]


def test_sweeps_expand_as_hydra_does() -> None:
    assert sweep(["seed=0,1", "method=choice(ddpo,ddpo_sf)"]) == [
        ["seed=0", "method=ddpo"],
        ["seed=0", "method=ddpo_sf"],
        ["seed=1", "method=ddpo"],
        ["seed=1", "method=ddpo_sf"],
    ]
    assert sweep([]) == [[]]


# --- how a run ends


class Broken(Exception):
    pass


@pytest.mark.parametrize(
    "error, code, said",
    [
        (MissingAsset("model.path: fetch it"), 3, "fetch it"),
        (ConfigError("method.images: must divide"), 2, "must divide"),
        (ValueError("method.images: must divide"), 2, "method.images: must divide"),
        (OSError(28, "No space left on device"), 3, "No space left"),
        (Stopped(signal.SIGTERM), 143, "signal 15"),
        (Stopped(signal.SIGUSR1), 138, "signal 10"),
    ],
)
def test_exit_codes(
    error: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "alignbench.run", SimpleNamespace(execute=raising(error)))
    assert door.main([]) == code
    one_line(capsys.readouterr().err, [said])
    assert list(tmp_path.iterdir()) == []


def raising(error: BaseException) -> Callable[[object], int]:
    def execute(composed: object) -> int:
        raise error

    return execute


def test_exit_codes_of_a_run_that_began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    folder = compose([]).folder
    folder.mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "alignbench.run", SimpleNamespace(execute=raising(Broken("two\nlines"))))
    assert door.main([]) == 1
    one_line(capsys.readouterr().err, ["two lines", "Broken", str(folder / "error.txt")])
    assert "Broken: two\nlines" in (folder / "error.txt").read_text()
    monkeypatch.setitem(sys.modules, "alignbench.run", SimpleNamespace(execute=raising(KeyboardInterrupt())))
    assert door.main([]) == 130
    monkeypatch.setitem(sys.modules, "alignbench.run", SimpleNamespace(execute=lambda composed: 0))
    assert door.main([]) == 0
    assert not (folder / "error.txt").exists()
