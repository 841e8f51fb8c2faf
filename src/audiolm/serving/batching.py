"""One thread runs the model for all clients: requests that wait at the same time are generated as one batch.

A batch reports its progress after every frame. At these points streams and short calls take turns, with as much time as the
batch had since their last turn, so that none of them waits for the end of the batch; and a batch whose clients have all left is
abandoned. Each answer is what the request would get alone (contract 3): other clients affect only how long it takes.

Time is shared by seconds of sound, not by requests: a batch is expected to take a quarter of the time that a request may take,
or is one request. Batches begin in turn with the shortest that waits and with the one that has waited longest, so that neither
waits for all of the other kind. What clearly cannot be done in time is refused at once.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from audiolm.asking import How, Request
from audiolm.audio import Waveform
from audiolm.model import AudioLM

T = TypeVar("T")
AHEAD = 2  # pieces that a stream may be ahead of its listener
GATHER = 0.03  # seconds that the worker waits for more requests before it starts a batch that is not full
SHARE = 0.25  # of a request's time, for one batch
CLEARLY = 1.25  # times its time: what a request must be expected to take to be refused, since wide batches are faster

_END = object()


class Busy(Exception):
    """No room in the queue, no stream free, or no time. `retry_after`: seconds until there should be; None if it is stopping."""

    def __init__(self, retry_after: int | None, text: str = "") -> None:
        super().__init__(text or f"the server is busy; try again in {retry_after} s")
        self.retry_after = retry_after


class _GivenUp(Exception):
    """No client waits for this batch any more."""


@dataclass(eq=False)
class _Job:
    request: Request
    way: How
    future: Future[Waveform] = field(default_factory=Future)

    @property
    def seconds(self) -> float:
        """Seconds of new sound; with `until_end`, the most."""
        semantic = self.request.semantic
        return (self.request.seconds or 0.0) if semantic is None else semantic.seconds

    def made(self, sound: Waveform) -> float:
        """Seconds of new sound in the result."""
        if not self.way.get("until_end"):
            return self.seconds
        prompt = None if self.way.get("only_new") else self.request.prompt
        return sound.seconds - (0.0 if prompt is None else prompt.seconds)

    def fits(self, other: "_Job") -> bool:
        """Whether the two may share a batch. Lengths differ by a factor of two at most, so that short ones need not wait long."""
        return self.way == other.way and self.seconds <= 2 * other.seconds and other.seconds <= 2 * self.seconds


class Stream(Generic[T], AsyncIterator[T]):
    """Pieces made by the worker for one listener, at most `AHEAD` of them before they are asked for."""

    def __init__(self, worker: "Worker", start: Callable[[], Iterator[T]]) -> None:
        self._worker, self._start = worker, start
        self._loop, self._ready = asyncio.get_running_loop(), asyncio.Queue[Any]()
        self._parts: Iterator[T] | None = None
        self._ahead, self._left = 0, False

    async def __anext__(self) -> T:
        piece = await self._ready.get()
        if piece is _END:
            raise StopAsyncIteration
        if isinstance(piece, Exception):
            raise piece
        with self._worker.changed:
            self._ahead -= 1
            self._worker.changed.notify()
        return piece

    def close(self) -> None:
        """The listener leaves: no more pieces are made."""
        with self._worker.changed:
            self._left = True
            self._worker.changed.notify()

    @property
    def due(self) -> bool:
        """Whether the worker has anything to do for this stream."""
        return self._left or self._ahead < AHEAD

    def advance(self) -> bool:
        """In the worker's thread: make the next piece. False if the stream is over."""
        if self._left:
            self._parts = None
            return False
        try:
            if self._parts is None:
                self._parts = self._start()
            piece = next(self._parts, _END)
        except Exception as error:
            piece = error
        with self._worker.changed:
            self._ahead += 1
        with suppress(RuntimeError):  # the event loop is closed, so nobody listens
            self._loop.call_soon_threadsafe(self._ready.put_nowait, piece)
        return piece is not _END and not isinstance(piece, Exception)


class Aside:
    """One thread for work that takes seconds and needs no stage, so that neither streams nor decoding wait for it.

    room: number of calls that may wait or run before `Busy` is raised.
    """

    def __init__(self, room: int = 8) -> None:
        self.room, self.waiting = room, 0
        self._seconds = 1.0  # running average of a call's
        self._pool = ThreadPoolExecutor(1, "aside", torch.set_num_threads, (1,))  # without helpers: see Service.open

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run it in the thread. If cancelled while waiting, it frees its place; what already runs goes on, alone."""
        if self.waiting >= self.room:
            raise Busy(math.ceil(self._seconds))

        def timed() -> T:
            began = time.monotonic()
            try:
                return function(*arguments)
            finally:
                self._seconds += 0.3 * (time.monotonic() - began - self._seconds)

        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, timed)
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Wait until all work is finished."""
        self._pool.shutdown()


class Worker:
    """The model's thread and its queue. `generate`, `call` and `stream` are for use in an event loop and do not block it.

    queue: number of requests that may wait, and streams: number of streams that may run, before `Busy` is raised. batch: most
    requests in a batch. tell: called with the size and the seconds of each batch, in the worker's thread. patience: seconds that
    a request may take.
    """

    def __init__(
        self,
        model: AudioLM,
        queue: int = 64,
        batch: int = 16,
        streams: int = 8,
        tell: Callable[[int, float], None] = lambda size, seconds: None,
        patience: float = math.inf,
    ) -> None:
        self.model, self.queue, self.batch, self.streams, self._tell = model, queue, batch, streams, tell
        self.patience = patience
        self.changed = threading.Condition()
        self._jobs: list[_Job] = []
        self._streams: deque[Stream[Any]] = deque()
        self._listening = 0
        self._closing = False
        self._made = self._worked = 0.0  # seconds of sound and of work, of the latest batches (running sums)
        self._until = 0.0  # when the running batch should be done
        self._shortest = True  # whether the next batch begins with the shortest request
        self._turn_began = self._turn_seconds = 0.0
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it accepts requests."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Number of unfinished requests, calls and streams, without the running batch."""
        return len(self._jobs) + len(self._streams)

    async def generate(self, requests: Sequence[Request], way: How) -> list[Waveform]:
        """The sounds for one client's requests. If cancelled while waiting, it frees its places in the queue."""
        jobs = [_Job(request, way) for request in requests]
        with self.changed:
            self._check_room(len(jobs))
            self._check_time(jobs)
            self._jobs += jobs
            self.changed.notify()
        try:
            return await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        finally:
            for job in jobs:
                job.future.cancel()

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run something short in the model's thread."""
        stream = self._listen(lambda: iter((function(*arguments),)))
        try:
            return await anext(stream)
        finally:
            stream.close()

    async def stream(self, start: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """The pieces of the iterator that `start` returns; both run in the model's thread."""
        with self.changed:
            if self._listening >= self.streams:
                raise self._busy()
            self._listening += 1
        try:
            stream = self._listen(start)
            try:
                async for piece in stream:
                    yield piece
            finally:
                stream.close()
        finally:
            self._listening -= 1

    def close(self) -> None:
        """Accept nothing more, and wait until all work is finished."""
        with self.changed:
            self._closing = True
            self.changed.notify()
        self._thread.join()

    def _listen(self, start: Callable[[], Iterator[T]]) -> Stream[T]:
        stream = Stream(self, start)
        with self.changed:
            self._check_room()
            self._streams.append(stream)
            self.changed.notify()
        return stream

    def _check_room(self, places: int = 1) -> None:
        self._jobs = [job for job in self._jobs if not job.future.cancelled()]
        if not self.alive or self.waiting + places > self.queue:
            raise self._busy()

    def _check_time(self, jobs: Sequence[_Job]) -> None:
        """Refuse what clearly cannot be done in time, once it is known how fast the model is."""
        if not self._worked:
            return
        asked, ahead = sum(job.seconds for job in jobs), self._ahead(max(job.seconds for job in jobs))
        # One sound on an idle server is always tried: what it takes shows how fast the model is now.
        if (not ahead and len(jobs) == 1) or ahead + asked / self._rate <= CLEARLY * self.patience:
            return
        most = self.patience * self._rate
        if asked <= most:
            raise self._busy(ahead + asked / self._rate - self.patience)
        raise self._busy(
            ahead, f"{asked:g} s of sound are more than is made here in {self.patience:g} s; ask for {most:.0f} s or less"
        )

    @property
    def _rate(self) -> float:
        """Seconds of sound made per second of work; 1 until it is known."""
        return self._made / self._worked if self._worked else 1.0

    def _ahead(self, seconds: float = math.inf) -> float:
        """Seconds until the running batch and the waiting requests of at most so many seconds of sound should be done."""
        waiting = sum(job.seconds for job in self._jobs if job.seconds <= seconds)
        return max(0.0, self._until - time.monotonic()) + waiting / self._rate

    def _busy(self, seconds: float | None = None, text: str = "") -> Busy:
        """To be raised. seconds: until there should be room; None: when all work is done."""
        if not self.alive:
            return Busy(None)
        # After `patience`, all who wait now are done or gone.
        return Busy(math.ceil(max(1.0, min(self.patience, self._ahead() if seconds is None else seconds))), text)

    # In the model's thread

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # as many as in the thread that created the worker
        torch.get_num_threads()  # the first call fixes the number; until then another thread's setting could override it
        while True:
            with self.changed:
                self.changed.wait_for(self._has_work)
                if not self._jobs and not self._streams:
                    return
            self._turn()
            if jobs := self._next_batch():
                self._generate(jobs)

    def _has_work(self) -> bool:
        idle = not self._jobs and not self._streams
        return (self._closing and idle) or bool(self._jobs) or any(each.due for each in self._streams)

    def _turn(self) -> None:
        """Make one piece for the stream or call that has waited longest."""
        with self.changed:
            stream = next((each for each in self._streams if each.due), None)
        if stream is None:
            return
        began = time.monotonic()
        going = stream.advance()
        self._turn_seconds = time.monotonic() - began
        with self.changed:
            self._streams.remove(stream)
            if going:
                self._streams.append(stream)

    def _next_batch(self) -> list[_Job]:
        """The shortest request or, every other time, the one that has waited longest; and others that fit it."""
        with self.changed:
            if not self._jobs:
                return []
            self.changed.wait_for(lambda: self._closing or len(self._jobs) >= self.batch, GATHER)
            waiting = [job for job in self._jobs if not job.future.cancelled()]
            if not waiting:
                self._jobs = []
                return []
            oldest, shortest = waiting[0], min(waiting, key=lambda job: job.seconds)
            first = shortest if self._shortest else oldest
            if shortest is not oldest:  # one of them had its turn
                self._shortest = not self._shortest
            batch, room = [first], SHARE * self.patience * self._rate - first.seconds
            for job in waiting:
                if job is not first and job.fits(first) and job.seconds <= room and len(batch) < self.batch:
                    batch.append(job)
                    room -= job.seconds
            self._jobs = [job for job in waiting if job not in batch]
            return batch

    def _generate(self, jobs: list[_Job]) -> None:
        began = self._turn_began = time.monotonic()
        requests, way, most = [job.request for job in jobs], jobs[0].way, sum(job.seconds for job in jobs)
        self._until = began + (most / self._rate if self._worked else 0.0)

        def between(*_: Any) -> None:
            if all(job.future.cancelled() for job in jobs):
                raise _GivenUp
            if time.monotonic() - self._turn_began >= self._turn_seconds:
                self._turn()
                self._turn_began = time.monotonic()

        try:
            try:
                sounds = self.model.generate_batch(requests, between, **way)
            finally:  # before anybody is answered: who then asks again finds no batch running
                self._until = 0.0
        except _GivenUp:
            return
        except Exception as error:
            if len(jobs) > 1:  # one of them is to blame; run each alone, so that the others succeed
                for job in jobs:
                    self._generate([job])
                return
            with suppress(InvalidStateError):
                jobs[0].future.set_exception(error)
            return
        seconds = time.monotonic() - began
        made = sum(job.made(sound) for job, sound in zip(jobs, sounds, strict=True))
        with self.changed:
            self._made, self._worked = 0.7 * self._made + made, 0.7 * self._worked + seconds
        for job, sound in zip(jobs, sounds, strict=True):
            with suppress(InvalidStateError):  # the client left at the last moment
                job.future.set_result(sound)
        self._tell(len(jobs), seconds)
