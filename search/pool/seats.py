"""Places for workers, one actor after another in each, and whose turn it is."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from search.tasks import Task


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a worker's method.

    Attributes:
        seat: the worker's.
        actor: who had the seat then.
        task: what the worker runs; None for its start.
        future: what comes back.
        order: of all calls.
    """

    seat: "Seat"
    actor: Any
    task: Task | None
    future: "Future[Any]"
    order: int


@dataclass(eq=False)
class Seat:
    """A place for a worker.

    Attributes:
        index: of the place.
        actor: who has it; None while nobody does.
        node: the actor's, once it is ready.
        ready: whether the actor takes tasks.
        failures: starts in a row that failed.
        calls: tasks handed out and not yet back, in that order.
        lost: calls that were lost with the actor, and what they raised.
        offered: loads at which it stands in the queue of the free.
    """

    index: int
    actor: Any = None
    node: str = ""
    ready: bool = False
    failures: int = 0
    calls: dict[Call, None] = field(default_factory=dict)
    lost: dict[Call, Exception] = field(default_factory=dict)
    offered: set[int] = field(default_factory=set)


class FreeSeats:
    """The seats whose workers have room, the least loaded first; each step takes O(log seats).

    Args:
        room: how many calls a worker is handed at once.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._heap: list[tuple[int, int, Seat]] = []

    def offer(self, seat: Seat) -> None:
        """Count a seat as free, if it is."""
        load = len(seat.calls)
        if seat.ready and load < self._room and load not in seat.offered:
            seat.offered.add(load)
            heappush(self._heap, (load, seat.index, seat))

    def take(self, usable: Callable[[Seat], bool]) -> Seat | None:
        """The freest seat, which is to be offered again once it has its task; None where there is none."""
        while self._heap:
            load, _, seat = heappop(self._heap)
            seat.offered.discard(load)
            if seat.ready and len(seat.calls) == load and usable(seat):
                return seat
        return None
