"""How far a study is: what it counts, and what it names the best."""

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from search.front import Front, front
from search.goals import SHARES
from search.status import Best, Status, rate_of, status
from search.storage import open_storage
from search.storage.reading import Ended, latest_ends
from tests.searches import STUDY, url_of
from tests.studies import CONFIG, MADE_UP, MIXED, SPACE, Told, describe, write_made_up, write_study

FLOAT_BYTES = 800_000


def best(found: Status) -> list[int | None]:
    return [one.trial for one in found.best]


def test_the_best_is_the_most_accurate_that_is_small_enough(tmp_path: Path) -> None:
    found = status("made-up", write_made_up(tmp_path))
    assert [(one.share, one.limit) for one in found.best] == [(share, FLOAT_BYTES // share) for share in SHARES]
    assert best(found) == [3, 1, 2]  # 0.97 of 120,000 bytes before 200,000; 0.96 of 100,000; 0.3 of 50,000
    assert (found.states, found.driver) == ({"COMPLETE": len(MADE_UP)}, None)
    assert found.document()["best"][0]["accuracy"] == 0.97


def test_what_a_race_stopped_is_not_the_best(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    told = [*MADE_UP, Told(MIXED, [(0.99, 40_000)], stopped=True)]
    write_study(url, CONFIG.study, describe(CONFIG), SPACE, told)
    assert best(status("made-up", url)) == [3, 1, 2]
    assert status("made-up", url).states == {"COMPLETE": len(told)}
    alone = f"sqlite:///{tmp_path}/alone.db"
    write_study(alone, CONFIG.study, describe(CONFIG), SPACE, told[-1:])
    assert status("made-up", alone).best[0] == Best(SHARES[0], FLOAT_BYTES // SHARES[0])


def test_of_a_search_it_names_members_of_the_front(undisturbed: Path) -> None:
    found, members = status(STUDY, url_of(undisturbed)), front(STUDY, url_of(undisturbed))
    assert sum(found.states.values()) == found.trials
    assert any(point.stopped for point in members.complete)
    for one in found.best:
        assert one.trial == _largest_within(members, one.limit)


def _largest_within(found: Front, limit: int) -> int | None:
    fitting = [point for point in found.points if point.bytes <= limit]
    return fitting[-1].trial if fitting else None


class TestRate:
    START = datetime(2026, 3, 1, 12)

    def ends(self, *at: float, seconds: float = 5.0) -> list[Ended]:
        """Trials that were told so many seconds after the start."""
        return [Ended(self.START + timedelta(seconds=one), seconds) for one in at]

    def test_it_is_of_the_latest_ends(self) -> None:
        assert rate_of(self.ends(0, 1, 3, 4)) == 0.75
        assert rate_of(self.ends(0, 30, 60, seconds=30)) == 1 / 30

    def test_nothing_is_known_before_two_moments(self) -> None:
        for at in ((), (5,), (5, 5, 5)):
            assert rate_of(self.ends(*at)) is None

    def test_those_that_were_told_in_the_first_moment_took_no_time(self) -> None:
        assert rate_of(self.ends(0, 0, 0, 10, 10)) == 0.2

    def test_what_was_before_a_pause_does_not_count(self) -> None:
        day = 86_400
        assert rate_of(self.ends(0, 1, 2, day, day + 10, day + 20)) == 0.1
        assert rate_of(self.ends(0, day, day + 5, 3 * day, 3 * day + 2)) == 0.5
        assert rate_of(self.ends(0, 1, 2, day)) is None

    def test_a_long_scoring_is_no_pause(self) -> None:
        assert rate_of(self.ends(0, 600, 1200, seconds=580)) == 1 / 600
        trained = [*self.ends(0, 2), *self.ends(900, seconds=895), *self.ends(902)]
        assert rate_of(trained) == 3 / 902

    def test_it_is_read_from_the_store(self, tmp_path: Path) -> None:
        url = write_made_up(tmp_path)
        with closing(open_storage(url, create=False)) as storage:
            found = storage.run("looking", lambda connection: latest_ends(connection, 1, 4), write=False)
            trials = storage.load_trials(1)
        utc = [one.datetime_complete.astimezone(UTC).replace(tzinfo=None) for one in trials if one.datetime_complete]
        assert [one.at for one in found] == sorted(utc)[-4:]
