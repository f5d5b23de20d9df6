"""Tasks whose workers Ray ended for want of memory."""

from search.pool.suspects import Suspects
from search.rungs import History
from search.tasks import ScoreTask
from spaces.policy import Policy


def task(number: int) -> ScoreTask:
    return ScoreTask(number, Policy(sites={}), History(1, 1.0, None).judges(always=False), ())


def test_each_runs_alone_in_its_turn() -> None:
    said: list[str] = []
    suspects, first, second = Suspects(said.append), task(3), task(1)
    assert not suspects
    assert suspects.next is None
    suspects.add(first)
    suspects.add(second)
    assert suspects.next is first
    suspects.begun()
    assert suspects
    assert suspects.next is None  # while that one runs
    assert not suspects.ended(7)  # which ran beside it before
    assert suspects.ended(3)
    assert suspects.next is second
    suspects.begun()
    assert suspects.ended(1)
    assert not suspects
    assert len(said) == 1
    assert "take fewer workers, or set ray.resources.memory" in said[0]


def test_none_is_tried_again_at_the_end() -> None:
    suspects = Suspects(print)
    suspects.add(task(0))
    suspects.begun()
    suspects.add(task(1))
    suspects.clear()
    assert suspects  # one still runs
    assert suspects.ended(0)
    assert not suspects
    assert suspects.next is None
