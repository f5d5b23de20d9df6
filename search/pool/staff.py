"""The workers of a pool: started, fed, noticed when they are lost, and started again."""

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnschedulableError, RayTaskError, RuntimeEnvSetupError

from search.pool.losses import last_line, loss_of, starts_with_an_error
from search.pool.room import waiting_for
from search.pool.seats import Call, FreeSeats, Seat
from search.tasks import Result, Task
from spaces.errors import RetryableError, StudyError

IN_FLIGHT = 2  # calls waiting at a worker: it starts on the second while the driver handles the first
STARTS = 3  # that fail one after another before any worker was ready, until the search ends
SHORT_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds between two starts that fail
FIRST_NOTICE, NOTICES = 10.0, 30.0  # seconds without a ready worker until that is said, and said again
DEAD = 4  # of Ray's states of an actor


@dataclass(frozen=True)
class Back:
    """A task that a worker does not have any more.

    Attributes:
        task: which.
        call: the number that it was handed out under.
        result: what came of it; None if it is to be tried again.
        refused: why the worker could not, just then.
        death: how the worker died while it ran this task, if it did so by itself.
        node: where that was.
        seat: the worker's.
    """

    task: Task
    call: int
    result: Result | None = None
    refused: str | None = None
    death: str | None = None
    node: str = ""
    seat: int = -1


class ConnectionLostError(ConnectionError):
    """Ray's client has lost the cluster, and with it all workers."""


class Staff:
    """The workers, as many as the cluster has room for, up to what is wanted.

    Args:
        start: starts one, and gives its actor before that is ready.
        workers: how many are wanted.
        concurrency: tasks that one actor runs at a time.
        asked: what is set aside for one, by Ray's names; None where nobody waits for it.
        say: takes a line for people.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        workers: int,
        concurrency: int,
        asked: Mapping[str, float] | None,
        say: Callable[[str], None],
    ) -> None:
        self._start, self._concurrency, self._asked, self._say = start, concurrency, asked, say
        self._seats = [Seat(i) for i in range(-(-workers // concurrency))]
        self._free = FreeSeats(IN_FLIGHT * concurrency)
        self._done: SimpleQueue[Call] = SimpleQueue()
        self._again: list[tuple[float, int]] = []  # when which seat is started again
        self._order = count()
        self._ready = 0
        self._ever_ready = False
        self._said: set[str] = set()
        self._notice_at = time.monotonic() + FIRST_NOTICE
        for seat in self._seats:
            self._begin(seat)

    @property
    def ready(self) -> int:
        """How many workers take tasks."""
        return self._ready * self._concurrency

    def hand(self, task: Task, avoid: Collection[int] = ()) -> int | None:
        """Give a task to the worker that has least to do; the call's number, None where all have their hands full.

        Args:
            task: which.
            avoid: seats whose workers do not get it while any other is ready, be that busy.
        """
        passed: list[Seat] = []
        while (seat := self._free.take(self._usable)) is not None and seat.index in avoid:
            passed.append(seat)
        if seat is None and passed and self._ready <= sum(self._seats[i].ready for i in set(avoid)):
            seat = passed.pop(0)
        for one in passed:
            self._free.offer(one)
        if seat is None:
            return None
        order = self._call(seat, seat.actor.run.remote(task), task)
        self._free.offer(seat)
        return order

    def back(self, timeout: float) -> list[Back]:
        """What the workers are done with, in the order in which it came.

        Args:
            timeout: seconds that the first event is waited for.

        Raises:
            StudyError: no worker can be started, or one failed in a way that nobody expected.
            ConnectionLostError: the cluster is out of reach; all that was handed out is lost.
        """
        self._look_around()
        found: list[Back] = []
        with contextlib.suppress(Empty):
            call = self._done.get(timeout=timeout) if timeout > 0 else self._done.get_nowait()
            while True:
                found += self._settle(call)
                call = self._done.get_nowait()
        return found

    def close(self) -> None:
        """End all workers."""
        for seat in self._seats:
            self._end(seat)

    # ------------------------------------------------------------------------------------------------------- starting

    def _begin(self, seat: Seat) -> None:
        seat.actor, seat.node = self._start(), ""
        self._call(seat, seat.actor.ready.remote(), None)

    def _call(self, seat: Seat, reference: Any, task: Task | None) -> int:
        future: Future[Any] = reference.future()
        call = Call(seat, seat.actor, task, future, next(self._order))
        if task is not None:
            seat.calls[call] = None
        future.add_done_callback(partial(_put, self._done, call))
        return call.order

    def _started(self, call: Call) -> None:
        seat = call.seat
        try:
            seat.node = str(call.future.result())
        except ConnectionError as error:
            raise ConnectionLostError(str(error)) from error
        except Exception as error:
            self._not_started(seat, error)
            return
        seat.ready, seat.failures = True, 0
        self._ready += 1
        self._ever_ready = True
        self._free.offer(seat)

    def _not_started(self, seat: Seat, error: Exception) -> None:
        """Try a start again: soon where a node was lost, later where it is likely to fail again.

        Raises:
            StudyError: it never worked, and will not.
        """
        loss = loss_of(error)
        setup = isinstance(error, RuntimeEnvSetupError | ActorUnschedulableError)
        if loss is None and not setup:
            raise StudyError(f"a worker cannot start: {last_line(error)}") from error
        self._end(seat)
        if loss is not None and not loss.own:
            heappush(self._again, (time.monotonic() + SHORT_PAUSE, seat.index))
            return
        seat.failures += 1
        reason = loss.reason if loss is not None and not starts_with_an_error(error) else last_line(error)
        final = setup or starts_with_an_error(error) or seat.failures >= STARTS
        if final and not self._ever_ready:
            raise StudyError(f"a worker cannot start: {reason}") from error
        if reason not in self._said:
            self._said.add(reason)
            self._say(f"a worker cannot start: {reason}; it is tried again, the others go on")
        heappush(self._again, (time.monotonic() + min(LONGEST_PAUSE, 2.0**seat.failures), seat.index))

    def _look_around(self) -> None:
        """Start again what is due, and say why no worker is ready."""
        now = time.monotonic()
        while self._again and self._again[0][0] <= now:
            self._begin(self._seats[heappop(self._again)[1]])
        if self._ready or self._asked is None:
            self._notice_at = now + FIRST_NOTICE
        elif now >= self._notice_at:
            self._notice_at = now + NOTICES
            self._say(f"no worker is ready: {waiting_for(self._asked)}")

    # -------------------------------------------------------------------------------------------------------- calls

    def _settle(self, call: Call) -> list[Back]:
        seat = call.seat
        if call.actor is not seat.actor:
            return []
        if call.task is None:
            self._started(call)
            return []
        found: list[Back] = []
        try:
            result: Result = call.future.result()
            found.append(Back(call.task, call.order, result))
        except RayTaskError as error:
            if not isinstance(error.cause, RetryableError):
                raise StudyError(f"a worker failed in a way it should not, please report this: {error}") from error
            found.append(Back(call.task, call.order, refused=str(error.cause), seat=seat.index))
        except ConnectionError as error:
            raise ConnectionLostError(str(error)) from error
        except Exception as error:
            if loss_of(error) is None:
                raise StudyError(f"Ray failed in a way it should not, please report this: {error}") from error
            self._lose(seat)
            seat.lost[call] = error
        del seat.calls[call]
        self._free.offer(seat)
        if seat.lost and not seat.calls:
            found += self._bury(seat)
        return found

    def _lose(self, seat: Seat) -> None:
        """Give no more to a worker that was lost; all that it still has comes back."""
        if seat.ready:
            seat.ready = False
            self._ready -= 1
            self._kill(seat)  # it may only have been out of reach

    def _bury(self, seat: Seat) -> list[Back]:
        """Start a lost worker again; the first of its calls that were lost ran, those behind it never began.

        Returns:
            The last one first, so that each can be put before the others again.
        """
        found: list[Back] = []
        for i, (call, error) in enumerate(sorted(seat.lost.items(), key=lambda item: item[0].order)):
            loss = loss_of(error) if i < self._concurrency else None
            death = loss.reason if loss is not None and loss.own else None
            if call.task is not None:
                found.append(Back(call.task, call.order, death=death, node=seat.node))
        seat.lost.clear()
        self._begin(seat)
        return found[::-1]

    def _usable(self, seat: Seat) -> bool:
        """Whether a worker that has nothing to do is still there: its death is no task's fault."""
        if seat.calls or not isinstance(seat.actor, ActorHandle):
            return True
        if seat.actor._get_local_state() != DEAD:  # type: ignore[no-untyped-call]
            return True
        self._lose(seat)
        self._begin(seat)
        return False

    def _end(self, seat: Seat) -> None:
        self._kill(seat)
        seat.actor, seat.ready = None, False

    def _kill(self, seat: Seat) -> None:
        if seat.actor is not None:
            with contextlib.suppress(Exception):  # it is dead, or the cluster is
                ray.kill(seat.actor)


def _put(queue: "SimpleQueue[Call]", call: Call, _: Any) -> None:
    """Ray's thread says that a call is done."""
    queue.put(call)
