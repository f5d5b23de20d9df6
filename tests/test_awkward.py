"""Models that do what models do: share layers, change their inputs, draw numbers; each is searched and verified."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from objectives.verification import verify
from search.cli import app
from search.config import Config
from search.export import apply, policy_files, select
from search.loop import launch
from spaces.errors import WorkloadError
from spaces.policy import PolicyFile
from tests.searches import attrs_of, rows_of, tiny, url_of

MODELS = '''
import os
from dataclasses import replace
import torch
from torch import nn
from tests import tiny

class Aliased(nn.Module):
    """One layer under two names, another one twice in a list."""
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(tiny.FEATURES, 8)
        self.again = self.first
        self.twice = nn.ModuleList([nn.Linear(8, 8)] * 2)
        self.head = nn.Linear(8, tiny.CLASSES)
    def forward(self, x):
        x = self.again(self.first(x).relu())
        for layer in self.twice:
            x = layer(x).relu()
        return self.head(x)

class InPlace(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def forward(self, x):
        return self.inner(x.mul_(1.5).sub_(0.3))

class Drawing(InPlace):
    def forward(self, x):
        return self.inner(nn.functional.dropout(x, 0.2))

class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(3)
    def forward(self, x):
        return self.layer(x)

def of(model):
    return replace(tiny.workload(), model=model)

def aliased():
    torch.manual_seed(0)
    return of(Aliased().eval())

def in_place():
    return of(InPlace(tiny.workload().model))

def drawing():
    return of(Drawing(tiny.workload().model))

def lazy():
    return of(Lazy())

def printing():
    print("loading!")
    return tiny.workload()

def hopeless():
    def metric(outputs, targets):
        metric.calls += 1
        if metric.calls > 2:  # the float model is scored on two splits
            raise ArithmeticError("out of luck")
        return (outputs.argmax(-1) == targets).float()
    metric.calls = 0
    return replace(tiny.workload(), metric=metric)
'''


@pytest.fixture
def models(tmp_path: Path) -> Path:
    file = tmp_path / "awkward.py"
    file.write_text(MODELS)
    return file


def of(models: Path, name: str, trials: int = 6) -> Config:
    return tiny(models.parent, trials, workload=f"{models}:{name}")


def exported(config: Config, folder: Path) -> tuple[PolicyFile, Path]:
    """The policy and the file of the best found."""
    found = launch(config).front
    (policy,) = policy_files([select(found)], config.study, config.storage)
    return policy, apply(policy, folder / "model.safetensors", cache=config.cache_folder())


@pytest.mark.parametrize("name", ["aliased", "in_place", "drawing"])
def test_it_is_searched_and_verified(models: Path, tmp_path: Path, name: str) -> None:
    config = of(models, name)
    policy, file = exported(config, tmp_path)
    assert [row.state for row in rows_of(tmp_path)] == ["COMPLETE"] * 6
    assert any(len(row.rungs) > 1 for row in rows_of(tmp_path))
    seen = verify(file, policy, workload=f"{models}:{name}", tolerance=0.0)
    assert seen.ok, seen.reasons


def test_data_are_not_changed_by_a_model_that_changes_its_inputs(models: Path, tmp_path: Path) -> None:
    plain, awkward = tmp_path / "plain", tmp_path / "awkward"
    for folder, name in ((plain, "drawing"), (awkward, "in_place")):
        folder.mkdir()
        for storage in ("a", "b"):
            launch(tiny(folder, 5, workload=f"{models}:{name}", storage=f"sqlite:///{folder}/{storage}.db"))
        assert rows_of(f"sqlite:///{folder}/a.db") == rows_of(f"sqlite:///{folder}/b.db")


def test_a_lazy_model_is_refused(models: Path) -> None:
    with pytest.raises(WorkloadError, match=r"layer\.weight has no shape yet"):
        launch(of(models, "lazy"))


def test_a_policy_that_was_edited_is_not_verified(models: Path, tmp_path: Path) -> None:
    policy, file = exported(of(models, "in_place"), tmp_path)
    document = json.loads(policy.text())
    document["sites"]["inner.head"] = {"prune": {"kind": "none"}, "weights": {"kind": "uniform", "bits": 7}}
    seen = verify(file, PolicyFile.model_validate(document), workload=f"{models}:in_place")
    assert not seen.ok
    assert any("site inner.head" in reason and "7 bits" in reason for reason in seen.reasons)
    del document["sites"]["inner.first"]
    missing = verify(file, PolicyFile.model_validate(document), workload=f"{models}:in_place")
    assert any("inner.first" in reason for reason in missing.reasons)


def test_what_a_workload_prints_does_not_get_into_json(models: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"study: printing\nworkload: {models}:printing\n")
    ended = CliRunner().invoke(app, ["inspect", str(tmp_path / "p.yaml"), "--json"])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["axes"] > 0
    assert "loading!" in ended.stderr


def test_a_search_without_a_completed_trial_fails_and_says_why(models: Path, tmp_path: Path) -> None:
    (tmp_path / "h.yaml").write_text(
        f"study: hopeless\nworkload: {models}:hopeless\nworkers: 0\nbudget: {{trials: 3}}\n"
        f"storage: sqlite:///{tmp_path}/h.db\n"
    )
    ended = CliRunner().invoke(app, ["launch", str(tmp_path / "h.yaml")])
    assert ended.exit_code == 1
    assert ended.stderr.count("out of luck") == 1
    assert "no trial has completed" in ended.stderr


def test_files_of_an_earlier_cache_folder_are_still_found(models: Path, tmp_path: Path) -> None:
    from search.cache import cache_of

    before = launch(tiny(tmp_path, 5, cache=str(tmp_path / "one"))).front
    after = launch(tiny(tmp_path, 6, cache=str(tmp_path / "two"))).front
    assert attrs_of(tmp_path)["cache"] == str(tmp_path / "two")
    assert attrs_of(tmp_path)["earlier_caches"] == [str(tmp_path / "one")]
    both = [point for point in after.points if point.trial in {one.trial for one in before.points}]
    assert both
    for policy in policy_files(both, None, url_of(tmp_path)):
        folder = cache_of(policy, None, url_of(tmp_path))
        assert apply(policy, tmp_path / "m.safetensors", cache=folder).stat().st_size == policy.artifact.bytes
