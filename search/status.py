"""How far a study is: its trials by state, how fast they finish, the best so far, and whether a driver is alive."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from search.config import storage_url
from search.front import pick_study
from search.goals import ends_words
from search.lease import Holder, holder
from search.storage import open_storage

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SHARES = (4, 8, 16)  # the best accuracy is told at the float bytes divided by these
RECENT = 50  # trials that the rate is taken over


@dataclass(frozen=True)
class Best:
    """The best accuracy in at most `limit` bytes: the float model's, divided by `share`; trial None if none is.

    Trials that a race stopped do not count: their accuracy is an estimate.
    """

    share: int
    limit: int
    trial: int | None = None
    accuracy: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Status:
    """How far a study is.

    Attributes:
        trials: how many trials the study shall have.
        ends: what ends its latest launch, and the sizes that one aims at, in words.
        states: how many trials are in which state.
        rate: candidates that finished in a second, over the latest ones; None before two have.
        best: the best accuracy at some sizes.
        driver: who searches, or searched last; None if nobody ever did.
    """

    study: str
    trials: int
    ends: str
    states: dict[str, int]
    rate: float | None
    best: tuple[Best, ...]
    driver: Holder | None

    def document(self) -> dict[str, Any]:
        """The status as JSON values: what `slimfront status --json` prints."""
        return asdict(self)


def status(study: str | None = None, storage: str | None = None) -> Status:
    """Look how far a study is.

    Args:
        study: its name; None is the only study of the store.
        storage: URL of the store; None is $SLIMFRONT_STORAGE, else sqlite:///slimfront.db.

    Raises:
        ConfigError, StudyError: there is no such store or study.
    """
    store = open_storage(storage_url(storage), create=False)
    try:
        found = pick_study(store, study)
        trials = store.load_trials(found.id)
        complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
        return Status(
            study=found.name,
            trials=found.attrs["config"]["budget"]["trials"],
            ends=ends_words(found.attrs["config"]["budget"]),
            states=dict(Counter(trial.state.name for trial in trials)),
            rate=_rate(trials),
            best=tuple(_best(complete, share, found.attrs["float"]["bytes"] // share) for share in SHARES),
            driver=holder(store, found.id),
        )
    finally:
        store.close()


def _rate(trials: Sequence["FrozenTrial"]) -> float | None:
    ends = sorted(trial.datetime_complete for trial in trials if trial.datetime_complete is not None)[-RECENT:]
    seconds = (ends[-1] - ends[0]).total_seconds() if ends else 0.0
    return (len(ends) - 1) / seconds if seconds > 0 else None


def _best(complete: Sequence["FrozenTrial"], share: int, limit: int) -> Best:
    fitting = [trial for trial in complete if trial.values[1] <= limit and not trial.user_attrs.get("stopped")]
    if not fitting:
        return Best(share, limit)
    best = max(fitting, key=lambda trial: (trial.values[0], -trial.values[1], -trial.number))
    return Best(share, limit, best.number, best.values[0], int(best.values[1]))
