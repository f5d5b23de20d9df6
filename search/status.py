"""How far a study is: its trials by state, how fast they finish, the best so far, and whether a driver is alive."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection

from search.config import storage_url
from search.goals import SHARES, ends_words
from search.lease import Holder, holder
from search.storage import open_storage
from search.storage.reading import Ended, best_within, count_states, latest_ends
from search.stored import pick_study

RECENT = 50  # trials that the rate is taken over, at most
PAUSE_SECONDS = 60.0  # see `rate_of`


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
        rate: candidates that finished in a second, over the latest ones since the last pause; None before two have.
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
        float_bytes, budget = found.attrs["float"]["bytes"], found.attrs["config"]["budget"]

        def read(connection: Connection) -> tuple[dict[str, int], Sequence[Ended], tuple[Best, ...]]:
            best = tuple(_best(connection, found.id, share, float_bytes // share) for share in SHARES)
            return count_states(connection, found.id), latest_ends(connection, found.id, RECENT), best

        states, ends, best = store.run(f"reading how far study {found.name!r} is", read, write=False)
        return Status(
            study=found.name,
            trials=budget["trials"],
            ends=ends_words(budget),
            states=states,
            rate=rate_of(ends),
            best=best,
            driver=holder(store, found.id),
        )
    finally:
        store.close()


def rate_of(ends: Sequence[Ended]) -> float | None:
    """Candidates in a second, since the last pause; None where fewer than two moments are known since then.

    Between two candidates that a search tells lies hardly more than the scoring of one takes, since the next one was
    asked before. So a pause is a gap of more than a minute and twice the longest scoring of these candidates: nobody
    searched then, as between two launches.

    Args:
        ends: of told trials, the earliest first.
    """
    longest = max((one.seconds for one in ends), default=0.0)
    gaps = [(after.at - before.at).total_seconds() for before, after in pairwise(ends)]
    paused = [at + 1 for at, gap in enumerate(gaps) if gap > PAUSE_SECONDS + 2 * longest]
    recent = ends[paused[-1] if paused else 0 :]
    seconds = (recent[-1].at - recent[0].at).total_seconds() if recent else 0.0
    later = sum(one.at > recent[0].at for one in recent)  # several may be told in one moment
    return later / seconds if seconds > 0 else None


def _best(connection: Connection, study_id: int, share: int, limit: int) -> Best:
    found = best_within(connection, study_id, limit)
    return Best(share, limit) if found is None else Best(share, limit, *found)
