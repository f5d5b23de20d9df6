"""Twenty-odd searches that cannot be: each ends with exit code 2 and one clear message, and writes nothing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from search.cli import app

WORKLOADS = """
import torch
from torch import nn
from slimfront import Workload

DATA = (torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2)


def made(**changed):
    model = nn.Linear(4, 2)
    nn.init.eye_(model.weight)
    given = dict(model=model, train=DATA, calibration=DATA, validation=DATA, test=DATA, example_input=torch.zeros(1, 4))
    return Workload(**{**given, **changed})


def good():
    return made()


def raises():
    raise RuntimeError("the disk with the data is not mounted")


def wrong_thing():
    return nn.Linear(4, 2)


def empty_validation():
    return made(validation=(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)))


def nan_metric():
    return made(metric=lambda outputs, targets: outputs[:, 0] * float("nan"))


def odd_metric():
    return made(metric=lambda outputs, targets: outputs)


def nothing_to_compress():
    return made(model=nn.Sequential(nn.ReLU()))


def lengths_differ():
    return made(train=(torch.zeros(8, 4), torch.zeros(7, dtype=torch.long)))


not_a_function = 3
"""
BAD = {
    "unknown key": (["spaec.bits=[4]"], "spaec"),
    "string for number": (["workers=many"], "workers"),
    "ratio above one": (["space.ratios=[0.0, 1.2]"], "space.ratios[1]"),
    "nine bits": (["space.bits=[4, 9]"], "space.bits[1]"),
    "no bits": (["space.bits=[]"], "space.bits"),
    "no trials": (["budget.trials=-3"], "budget.trials"),
    "no window": (["window=0"], "window"),
    "upside-down range": (["distillation.temperature=[8, 1]"], "distillation.temperature"),
    "falling steps": (["distillation.steps=[60, 20]"], "distillation.steps"),
    "unknown target": (["target=tpu"], "target"),
    "entry without colon": (["workload=workloads"], "workload"),
    "missing file": (["workload=nowhere.py:good"], "nowhere.py"),
    "missing module": (["workload=no_such_module:good"], "no_such_module"),
    "missing function": (["workload=workloads.py:godo"], "godo"),
    "not a function": (["workload=workloads.py:not_a_function"], "not_a_function"),
    "file with an error": (["workload=syntax.py:good"], "syntax.py"),
    "module that raises": (["workload=raising.py:good"], "no licence for this"),
    "function that raises": (["workload=workloads.py:raises"], "the disk with the data is not mounted"),
    "function that returns the wrong thing": (["workload=workloads.py:wrong_thing"], "Linear"),
    "empty validation set": (["workload=workloads.py:empty_validation"], "validation"),
    "metric that is not a number": (["workload=workloads.py:nan_metric"], "metric"),
    "metric of the wrong shape": (["workload=workloads.py:odd_metric"], "metric"),
    "nothing to compress": (["workload=workloads.py:nothing_to_compress"], "nothing to compress"),
    "lengths that differ": (["workload=workloads.py:lengths_differ"], "train"),
    "unknown sampler": (["sampler.name=nsga9"], "nsga2"),
    "sampler that is no sampler": (["sampler.name=optuna.trial.Trial"], "optuna.trial.Trial"),
    "sampler of one objective": (["sampler.name=optuna.samplers.CmaEsSampler"], "CmaEsSampler"),
    "option that the sampler does not take": (["sampler.options={populace: 9}"], "populace"),
    "site rule that matches nothing": (["space.rules=[{sites: 'head*', bits: [8]}]"], "head*"),
    "excluded site that is not there": (["space.exclude=[tail]"], "tail"),
    "storage in no folder": (["storage=sqlite:////no/such/folder/s.db"], "/no/such/folder"),
    "storage that is a folder": (["storage=sqlite:///."], "storage"),
    "storage of no kind": (["storage=oracle://u:s3cret@h/d"], "storage"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "workloads.py").write_text(WORKLOADS)
    (tmp_path / "syntax.py").write_text("def good(:\n")
    (tmp_path / "raising.py").write_text("raise ImportError('no licence for this')\n")
    (tmp_path / "search.yaml").write_text("study: broken\nworkload: workloads.py:good\nbudget: {trials: 3}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    return tmp_path


@pytest.mark.parametrize(("changes", "named"), BAD.values(), ids=BAD.keys())
def test_a_broken_search_ends_with_one_clear_message(folder: Path, changes: list[str], named: str) -> None:
    before = sorted(folder.rglob("*"))
    options = [word for change in changes for word in ("--set", change)]
    ended = CliRunner().invoke(app, ["launch", "search.yaml", *options])
    assert ended.exit_code == 2, ended.output
    assert named in ended.stderr
    assert ended.stderr.count("error: ") == 1
    assert "Traceback" not in ended.output
    assert "s3cret" not in ended.output
    assert ended.stdout == ""
    assert sorted(folder.rglob("*")) == before


def test_the_same_search_unbroken_is_done(folder: Path) -> None:
    ended = CliRunner().invoke(app, ["launch", "search.yaml", "--workers", "0", "--set", "distillation.steps=[2]"])
    assert ended.exit_code == 0, ended.output
    assert (folder / "slimfront.db").exists()
