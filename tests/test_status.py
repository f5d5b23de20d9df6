"""How far a study is: what it counts, and what it names the best."""

from pathlib import Path

from search.front import Front, front
from search.status import SHARES, Best, Status, status
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
    write_study(url, CONFIG.study, describe(CONFIG, SPACE), SPACE, told)
    assert best(status("made-up", url)) == [3, 1, 2]
    assert status("made-up", url).states == {"COMPLETE": len(told)}
    alone = f"sqlite:///{tmp_path}/alone.db"
    write_study(alone, CONFIG.study, describe(CONFIG, SPACE), SPACE, told[-1:])
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
