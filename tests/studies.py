"""Studies to test with, written as a search writes them: made-up scores, or digits policies that were really scored."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from objectives.judging import FixedJudge
from objectives.score import Score
from search.candidates import Prepared, prepare
from search.config import Config
from search.config_sections import CacheConfig, DistillationConfig, SamplerConfig, SpaceConfig
from search.front import Point, front
from search.storage import End, Start, open_storage
from search.study import distributions, open_study
from spaces.policy import Policy
from spaces.site_space import SiteSpace
from spaces.space import Space

DIGITS = "objectives.workloads.digits:workload"
CONFIG = Config(study="made-up", workload=DIGITS)
SPACE = Space(tuple(SiteSpace(name, ("uniform",), (0.0, 0.5), (2, 4, 8)) for name in ("body", "head")))
UNIFORM = [Policy(sites=sites) for sites in SPACE.uniform()]  # 8, 4, 2 bits, then the same pruned by half
MIXED = Policy(sites={"body": UNIFORM[1].sites["body"], "head": UNIFORM[0].sites["head"]})
VERSIONS = {"slimfront": "0.1.0", "torch": "2.13.0", "python": "3.11.0"}


@dataclass(frozen=True)
class Told:
    """A finished trial with made-up scores: accuracy and bytes on each rung."""

    policy: Policy
    rungs: Sequence[tuple[float, int]]
    origin: str = "sampler"
    ci95: tuple[float, float] | None = None
    artifact: str | None = None
    stopped: bool = False

    def attrs(self) -> dict[str, Any]:
        """What the loop stores with it when it is told."""
        rungs = [
            {"rung": i, "accuracy": accuracy, "bytes": size, "macs": 1000.0, "loss": 0.1, "seconds": 0.01}
            for i, (accuracy, size) in enumerate(self.rungs)
        ]
        attrs = {"macs": 1000.0, "rung": len(rungs) - 1, "rungs": rungs, "ci95": self.ci95, "artifact": self.artifact}
        return {**attrs, "stopped": True} if self.stopped else attrs


def describe(config: Config, **changed: Any) -> dict[str, Any]:
    """The attributes of a study of a made-up model of 800,000 bytes and accuracy 0.98."""
    return {
        "versions": VERSIONS,
        "config": config.document(),
        "fingerprint": config.fingerprint(),
        "workload": {
            "entry": config.workload,
            "model_sha256": "1" * 64,
            "data_sha256": "2" * 64,
            "chance": 0.1,
            "licence": "",
        },
        "float": {
            "bytes": 800_000,
            "accuracy": 0.98,
            "accuracy_ci95": [0.97, 0.99],
            "test_accuracy": 0.97,
            "macs": 1e6,
        },
        "smallest_bytes": 10_000,
        "cache": "/nowhere",
        "device": "cpu",
        "coding": "packed",
        **changed,
    }


def write_study(
    url: str,
    name: str,
    attrs: Mapping[str, Any],
    space: Space,
    told: Sequence[Told],
    documents: Mapping[str, Any] | None = None,
) -> None:
    """Make a study of these trials, with further documents beside its space, or in its place."""
    storage = open_storage(url, create=True)
    try:
        study_id, _ = open_study(storage, name)
        storage.set_documents(study_id, {"space": space.document(), **(documents or {})})
        storage.set_study_attrs(study_id, attrs)
        starts = [start(number, space, one.policy, one.origin) for number, one in enumerate(told)]
        ends = [
            End(number, TrialState.COMPLETE, [one.rungs[-1][0], float(one.rungs[-1][1])], one.attrs())
            for number, one in enumerate(told)
        ]
        storage.write_trials(study_id, starts, ends)
    finally:
        storage.close()


def start(number: int, space: Space, policy: Policy, origin: str) -> Start:
    """A trial of this policy, as a search asks it."""
    return Start(number, space.params(policy), distributions(space), {"origin": origin, "digest": policy.digest}, {})


MADE_UP = [
    Told(UNIFORM[0], [(0.98, 200_000), (0.97, 200_000)], "uniform", (0.96, 0.98), "a" * 64),  # beaten by trial 3
    Told(UNIFORM[1], [(0.90, 100_000), (0.96, 100_000)], "uniform"),  # on rung 1 only trial 4 comes near
    Told(UNIFORM[2], [(0.20, 50_000), (0.30, 50_000)], "uniform"),  # too bad to count
    Told(MIXED, [(0.97, 120_000)], "predicted", (0.95, 0.99), "b" * 64),
    Told(MIXED, [(0.80, 60_000), (0.95, 60_000)], "sampler", artifact="c" * 64),
    Told(MIXED, [(0.97, 120_000)], "sampler"),  # equal to trial 3
]


TESTS = {"3": {"accuracy": 0.96, "ci95": None}, "4": {"accuracy": 0.9, "ci95": None}}


def write_made_up(folder: Path) -> str:
    """Write the study `made-up` into `folder`/store.db, and return the store's URL."""
    url = f"sqlite:///{folder}/store.db"
    write_study(url, CONFIG.study, describe(CONFIG), SPACE, MADE_UP, {"test": TESTS})
    return url


def every_point(url: str, study: str | None = None) -> list[Point]:
    """All finished trials of a study in full, by number."""
    found = front(study, url, also=[one.trial for one in front(study, url).complete])
    return sorted(found.also, key=lambda one: one.trial)


@dataclass(frozen=True)
class DigitsStudy:
    """A study of the digits workload whose policies were really scored, one of them off the front."""

    url: str
    cache: Path
    prepared: Prepared
    scores: Sequence[Score]


def score_digits(folder: Path) -> DigitsStudy:
    """Score a few policies of digits, trained for 4 steps at most, into `folder`/digits.db and `folder`/cache."""
    config = Config(
        study="digits",
        workload=DIGITS,
        space=SpaceConfig(bits=(2, 4, 8), ratios=(0.0, 0.5)),
        distillation=DistillationConfig(steps=(2, 4)),
        sampler=SamplerConfig(uniform=3, predicted=4),
        cache=CacheConfig(folder=str(folder / "cache")),
    )
    url = f"sqlite:///{folder}/digits.db"
    prepared = prepare(config)
    model, loaded = prepared.float_score, prepared.loaded
    attrs = describe(
        config,
        workload={
            "entry": loaded.entry,
            "model_sha256": loaded.model_sha256,
            "data_sha256": loaded.data_sha256,
            "chance": loaded.workload.chance,
            "licence": loaded.workload.licence,
        },
        float={
            "bytes": model.bytes,
            "accuracy": model.validation.value,
            "accuracy_ci95": model.validation.ci95,
            "test_accuracy": model.test.value,
            "macs": model.macs,
        },
        smallest_bytes=prepared.smallest_bytes,
        cache=str(prepared.evaluation.cache),
        coding=prepared.evaluation.coding,
    )
    storage = open_storage(url, create=True)
    scores, tests, starts, ends = [], {}, [], []
    try:
        study_id, _ = open_study(storage, "digits")
        storage.set_documents(study_id, {"space": prepared.space.document()})
        storage.set_study_attrs(study_id, attrs)
        for number, (origin, policy) in enumerate(prepared.first):
            starts.append(start(number, prepared.space, policy, origin))
            until = number % 3  # rungs 0, 1 and 2 are all reached
            score = prepared.scorer.score(policy, FixedJudge(until, kept=number > 0))
            if score.artifact is not None:
                path = prepared.evaluation.cache / "artifacts" / f"{score.artifact}.safetensors"
                test = prepared.scorer.score_file(path, "test")
                tests[str(number)] = {"accuracy": test.value, "ci95": test.ci95}
            told = {
                "macs": score.macs,
                "rung": score.rung,
                "rungs": [asdict(rung) for rung in score.rungs],
                "ci95": score.ci95,
                "artifact": score.artifact,
            }
            ends.append(End(number, TrialState.COMPLETE, [score.accuracy, float(score.bytes)], told))
            scores.append(score)
        storage.write_trials(study_id, starts, ends)
        storage.set_documents(study_id, {"test": tests})
    finally:
        storage.close()
    return DigitsStudy(url, prepared.evaluation.cache, prepared, scores)
