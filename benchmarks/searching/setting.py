"""What all searchers of one workload are given: its space, its layers' costs, first candidates, boxes to measure in."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from compress.database import CODE_VERSION
from compress.inputs import take
from compress.layer import Cost
from objectives.evaluation import seed_of
from objectives.score import Scorer
from objectives.splits import Split, SplitName
from objectives.workload import LoadedWorkload
from search.candidates import Checked, Prepared, build_here, check, prepare
from search.config import Config, load_config
from search.front import DEPLOYED_DROP
from search.pareto import Box
from search.samplers.features import Features
from search.samplers.loss_model import unlearned
from search.samplers.named import Knowledge
from search.sensitivity import predicted_front
from search.tasks import LayerTask
from spaces.policy import Choice, Policy

CONFIGS = {"digits": "configs/quickstart.yaml", "animals": "configs/animals.yaml", "lenet": "configs/lenet.yaml"}
RECORDS_VERSION = 2  # of what is recorded: raise it when a policy's outcomes change
MOST_SAMPLES = 20_000  # of the replays on train and validation images together


@dataclass(frozen=True, eq=False)
class SiteLevels:
    """One site's choices that no other one beats in bytes and predicted loss, smallest first.

    Attributes:
        bytes: int64 (levels,), increasing.
        losses: predicted before any trial, as the first candidates are, float64 (levels,), decreasing.
    """

    name: str
    choices: tuple[Choice, ...]
    bytes: NDArray[np.int64]
    losses: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Setting:
    """One workload, ready to be searched one-shot.

    Attributes:
        split: what candidates are scored on: "validation", or "train" for many samples.
        box: of accuracies on that split, from chance to 1; `box5` of those within 5 points of the float model's.
        test_box: the same on the test split, as `test_box5`.
        levels: of each site, in the order of the space.
        rest: bytes of a packed file beside its sites'.
        shuffled: whether sensitivities were shuffled.
    """

    workload: str
    config: Config
    prepared: Prepared
    split: SplitName
    box: Box
    box5: Box
    test_box: Box
    test_box5: Box
    levels: tuple[SiteLevels, ...]
    rest: int
    shuffled: bool

    @property
    def knowledge(self) -> Knowledge:
        """What our sampler is given."""
        return Knowledge(self.prepared.tables, (self.box, self.box5), self.box5.best)

    @property
    def key(self) -> str:
        """Of what decides a policy's outcomes: under it they are found again."""
        evaluation, loaded = self.prepared.evaluation, self.prepared.loaded
        return digest_of(
            RECORDS_VERSION,
            CODE_VERSION,
            torch.__version__,
            version("constriction"),
            self.prepared.space.document(),
            loaded.model_sha256,
            loaded.data_sha256,
            [evaluation.chunk, evaluation.threads, evaluation.device, evaluation.coding],
            MOST_SAMPLES,
        )

    @property
    def samples(self) -> int:
        """That a candidate is scored on in full."""
        return self.prepared.loaded.splits[self.split].samples

    @property
    def span(self) -> tuple[float, float]:
        """Bytes of files: the smallest, and a quarter of the float model's (the largest where none is so small)."""
        small, large = (self.rest + sum(int(one.bytes[at]) for one in self.levels) for at in (0, -1))
        return small, self.box.largest if self.box.largest > small else large

    @property
    def database_forwards(self) -> int:
        """Sample-forwards that the layer database took: once over calibration data."""
        return self.prepared.loaded.splits["calibration"].samples

    @property
    def sensitivity_forwards(self) -> float:
        """Sample-forwards that the sensitivities took beside the layer database; a backward pass counts as two."""
        found = self.prepared.sensitivities
        return float(found["forwards"]) + 2.0 * float(found["backwards"])

    @property
    def first_digest(self) -> str:
        """Of the candidates that are tried first."""
        return digest_of([policy.digest for _, policy in self.prepared.first])

    @property
    def levels_digest(self) -> str:
        """Of what the dynamic programme is given."""
        return digest_of([[one.name, one.bytes.tolist(), one.losses.tolist()] for one in self.levels])

    def policy(self, chosen: Sequence[int]) -> Policy:
        """The policy of these levels, one a site."""
        sites = {one.name: one.choices[int(at)] for one, at in zip(self.levels, chosen, strict=True)}
        return self.prepared.space.make(sites)


def digest_of(*parts: object) -> str:
    """SHA-256 (hex, 16 digits) of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def set_up(workload: str, folder: Path, split: SplitName = "validation", *, shuffled: bool = False) -> Setting:
    """Load a workload, compress its layers (they are kept in the folder), and predict its front.

    Args:
        workload: "digits", "animals" or "lenet", or the path of a config.
        folder: of records and layers.
        split: what candidates are scored on.
        shuffled: give each choice the sensitivities of another one, at random: a prediction that is wrong on purpose.

    Raises:
        ConfigError, WorkloadError: as `search.candidates.check` does.
    """
    overrides = ["distillation.steps=[]", "distillation.student_steps=0", f"cache={json.dumps(str(folder / 'cache'))}"]
    config = load_config(Path(CONFIGS.get(workload, workload)), overrides, seed=0)
    checked = check(config)
    if split == "train":
        checked = replace(checked, loaded=_with_many(checked.loaded, config))
    prepared = prepare(config, checked, _build_shuffled if shuffled else build_here)
    space, table = prepared.space, prepared.tables[0]
    if len(prepared.tables) > 1:
        raise ValueError(f"{workload}: only sites are searched here, and the space has channels, blocks or students")
    unlearnt = unlearned(Features(prepared.tables))
    levels = tuple(
        _levels(site.name, site.choices(), own.bytes, losses)
        for site, own, losses in zip(space.sites, table.sites, unlearnt.costs(0, unlearnt.weights()), strict=True)
    )
    accuracy, test = _float_accuracies(checked, prepared, split)
    whole, _ = prepared.boxes
    return Setting(
        workload=workload,
        config=config,
        prepared=prepared,
        split=split,
        box=whole,
        box5=replace(whole, worst=accuracy - DEPLOYED_DROP, best=accuracy),
        test_box=whole,
        test_box5=replace(whole, worst=test - DEPLOYED_DROP, best=test),
        levels=levels,
        rest=table.rest,
        shuffled=shuffled,
    )


def _float_accuracies(checked: Checked, prepared: Prepared, split: SplitName) -> tuple[float, float]:
    score = checked.float_score
    if split == "validation":
        return score.validation.value, score.test.value
    values = prepared.scorer.outcomes(prepared.loaded.model, split).values
    return float(values.mean(dtype=np.float64)), score.test.value


def _with_many(loaded: LoadedWorkload, config: Config) -> LoadedWorkload:
    """The workload with train and validation images together as its train split, shuffled, up to MOST_SAMPLES."""
    train, validation = loaded.splits["train"], loaded.splits["validation"]
    if not isinstance(train.inputs, torch.Tensor) or not isinstance(validation.inputs, torch.Tensor):
        raise ValueError(f"{loaded.entry}: only inputs of one tensor can be put together")
    if train.targets is None or validation.targets is None:
        raise ValueError(f"{loaded.entry}: there are no targets to score train images with")
    inputs = torch.cat([validation.inputs, train.inputs])
    targets = torch.cat([validation.targets, train.targets])
    generator = torch.Generator().manual_seed(seed_of(0, "many samples"))
    order = torch.randperm(targets.shape[0], generator=generator)[:MOST_SAMPLES]
    many = Split(take(inputs, order), targets[order])
    return replace(loaded, splits={**loaded.splits, "train": many})


def _levels(name: str, choices: Sequence[Choice], bytes: NDArray[np.int64], losses: NDArray[np.float64]) -> SiteLevels:
    sizes, left, chosen = predicted_front([bytes], [losses])
    return SiteLevels(name, tuple(choices[int(i)] for i in chosen[:, 0]), sizes, left)


def _build_shuffled(scorer: Scorer, tasks: Sequence[LayerTask]) -> list[list[Cost]]:
    """The same bytes with the sensitivities of other choices, of any site."""
    costs = build_here(scorer, tasks)
    every = [cost for own in costs for cost in own]
    random.Random(seed_of(0, "shuffled sensitivities")).shuffle(every)  # noqa: S311 - not for secrets
    others = iter(every)
    return [[replace(next(others), bytes=cost.bytes) for cost in own] for own in costs]
