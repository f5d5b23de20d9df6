"""A small workload that has everything: residual blocks, channel groups, LayerNorm, early weights and a student."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.files import artifact_path
from objectives.evaluation import Evaluation, teach
from objectives.judging import FixedJudge
from objectives.score import Scorer
from objectives.workload import Workload, load_workload
from search.config_sections import BudgetConfig, SamplerConfig, SpaceConfig
from search.export import policy_files
from search.loop import launch
from spaces.policy import (
    ArtifactRecord,
    ChannelPruning,
    Choice,
    Codebook,
    DynamicActivations,
    Float16,
    Policy,
    PolicyFile,
    Provenance,
    ScoreRecord,
    StaticActivations,
    Uniform,
    Unstructured,
    WorkloadRecord,
)
from tests import tiny
from tests.searches import tiny as tiny_search
from tests.searches import url_of
from tests.studies import every_point

ENTRY = "tests.deep:workload"


class Block(nn.Module):
    """x + down(relu(up(norm(x))))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.down(self.up(self.norm(x)).relu())
        return x + inner


class Network(nn.Module):
    def __init__(self, width: int = 12, inner: int = 16) -> None:
        super().__init__()
        self.stem = nn.Linear(tiny.FEATURES, 2 * width)
        self.norm = nn.BatchNorm1d(2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.blocks = nn.ModuleList([Block(width, inner), Block(width, inner)])
        self.head = nn.Linear(width, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(self.norm(self.stem(x)).relu())
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


def made(seed: int, *sizes: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(*sizes)


def trained(steps: int) -> Network:
    """The same in every process: what rounding differs in training is rounded away."""
    inputs, targets = tiny.clouds(tiny.SIZES[0], seed=0)
    model = made(3).double()
    weights = list(model.parameters())
    for _ in range(steps):
        loss = functional.cross_entropy(model(inputs.double()), targets)
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.data -= 0.3 * slope
    model = model.float().eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(((tensor * 1024).floor() + 0.5) / 1024)
    return model


def workload() -> Workload:
    students = {"small": made(5, 6, 8)}
    return replace(tiny.workload(), model=trained(80), students=students, early=trained(10).state_dict())


@dataclass(frozen=True)
class Found:
    """The finished policies of a small search, and where it kept their files."""

    policies: Sequence[PolicyFile]
    cache: Path


def search(folder: Path, trials: int = 8, *, space: dict[str, Any] | None = None, **changed: Any) -> Found:
    """Search the workload for a moment, in this process."""
    given = {"bits": (3, 8), "ratios": (0.0, 0.5), "students": False, **(space or {})}
    settings = {"workload": ENTRY, "space": SpaceConfig(**given), "budget": BudgetConfig(trials=trials)}
    settings["sampler"] = SamplerConfig(name="nsga2", options={"population_size": 4}, uniform=2, predicted=trials // 2)
    launch(tiny_search(folder, **{**settings, "coding": "packed", **changed}))
    return Found(policy_files(every_point(url_of(folder)), storage=url_of(folder)), folder / "cache")


CODED = Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=4))
WHOLE = ("stem", "narrow", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head")
SMALL_STEM = {"group-stem": 0.5}


def policy(choice: Choice = CODED, **changed: Any) -> Policy:
    """One choice at every site that is left."""
    gone = tuple(f"{name}." for name in changed.get("dropped", ()))
    sites = {name: choice for name in WHOLE if not name.startswith(gone)} if gone else dict.fromkeys(WHOLE, choice)
    return Policy(sites=sites, **changed)


POLICIES = {
    "pruned": policy(),
    "channels": policy(channels=SMALL_STEM, channel_pruning=ChannelPruning()),
    "blocks": policy(channels=SMALL_STEM, channel_pruning=ChannelPruning(), dropped=("blocks.1",)),
    "student": policy(Choice(weights=Uniform(bits=8)), model="small"),
    "codebook": policy(Choice(weights=Codebook(bits=3))),
    "activations": policy(Choice(weights=Uniform(bits=8), activations=StaticActivations(bits=8))),
    "dynamic": policy(Choice(weights=Float16(), activations=DynamicActivations(bits=7))),
}


def scored(folder: Path, policies: Sequence[Policy], study: str = "deep", **changed: Any) -> Found:
    """Policies of this workload, really scored without training, as a search exports them."""
    loaded = load_workload(ENTRY)
    settings: dict[str, Any] = {"seed": 0, "chunk": 32, "threads": 1, "device": "cpu", "steps": ()}
    evaluation = Evaluation(cache=folder / "cache", **{**settings, **changed})
    scorer = Scorer(loaded, evaluation, teach(loaded, evaluation))
    whole = scorer.float_score()
    files = []
    for number, one in enumerate(policies):
        score = scorer.score(one, FixedJudge(0))
        assert score.artifact is not None
        test = scorer.score_file(artifact_path(evaluation.cache, score.artifact), "test").value
        files.append(
            PolicyFile(
                **one.model_dump(exclude={"distillation"}),
                workload=WorkloadRecord(entry=ENTRY, model_sha256=loaded.model_sha256, data_sha256=loaded.data_sha256),
                target="storage",
                distillation=None,
                artifact=ArtifactRecord(sha256=score.artifact, bytes=score.bytes, coding=evaluation.coding),
                score=ScoreRecord(
                    accuracy=score.accuracy,
                    accuracy_ci95=score.ci95,
                    test_accuracy=test,
                    bytes=score.bytes,
                    macs=score.macs,
                    float_accuracy=whole.validation.value,
                    float_test_accuracy=whole.test.value,
                    float_bytes=whole.bytes,
                    rung=0,
                ),
                provenance=Provenance(
                    study=study, trial=number, seed=0, chunk=32, threads=1, device="cpu", versions={"torch": "2"}
                ),
            )
        )
    return Found(files, evaluation.cache)


def file_of(found: Found, number: int) -> Path:
    """The packed file of a policy."""
    return artifact_path(found.cache, str(found.policies[number].artifact.sha256))
