"""The model's thread: what comes together is generated together, and each gets what it would get alone (contract 3)."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import torch

from audiolm.asking import Request
from audiolm.audio import Waveform
from audiolm.errors import InputError
from audiolm.model import AudioLM
from audiolm.serving.batching import AHEAD, Busy, Worker


def run(model: AudioLM, scene: Callable[[Worker], Awaitable[Any]], **options: Any) -> tuple[Any, list[int]]:
    """What a scene with a worker returns, and the sizes of the batches that were generated."""
    sizes: list[int] = []

    async def play() -> Any:
        worker = Worker(model, tell=lambda size, seconds: sizes.append(size), **options)
        try:
            async with asyncio.timeout(30):
                return await scene(worker)
        finally:
            await asyncio.to_thread(worker.close)

    return asyncio.run(play()), sizes


def test_what_comes_together_is_one_batch_and_each_as_if_alone(tiny_model: AudioLM, female: Waveform, male: Waveform) -> None:
    requests = [
        Request(female.trim(1.0), 0.8, seed=1),
        Request(male.trim(1.7), 1.2, seed=2),
        Request(None, 0.9, seed=3),
        Request(female.trim(0.5), semantic=tiny_model.tokenize(male.trim(1.0)).semantic, seed=4),
    ]

    async def scene(worker: Worker) -> list[list[Waveform]]:
        return await asyncio.gather(*(worker.generate([each], {}) for each in requests))

    sounds, sizes = run(tiny_model, scene)
    assert sizes == [4]
    for request, (sound,) in zip(requests, sounds, strict=True):
        alone = tiny_model.generate(request.prompt, request.seconds, request.semantic, request.seed)
        assert torch.equal(sound.samples, alone.samples)


def test_sounds_that_end_are_as_if_alone_and_count_for_what_they_are(tiny_model: AudioLM, female: Waveform) -> None:
    requests = [Request(prompt, 2.0, seed=seed) for seed in range(2) for prompt in (female.trim(1.01), None)]

    async def scene(worker: Worker) -> tuple[list[Waveform], float]:
        sounds = await worker.generate(requests, {"until_end": True})
        await worker.call(lambda: None)  # the batch's books are closed
        return sounds, worker._made

    (sounds, counted), sizes = run(tiny_model, scene)
    assert sizes == [4]
    for request, sound in zip(requests, sounds, strict=True):
        alone = tiny_model.generate(request.prompt, 2.0, seed=request.seed, until_end=True)
        assert torch.equal(sound.samples, alone.samples)
    assert counted == pytest.approx(sum(sound.seconds for sound in sounds) - 2 * 1.01)
    assert counted < 7


def test_ways_and_lengths_that_do_not_fit_wait_for_their_own_batch(tiny_model: AudioLM) -> None:
    ways = [(0.4, {}), (0.5, {"only_new": True}), (0.6, {}), (5.0, {}), (0.5, {"only_new": True})]

    async def scene(worker: Worker) -> list[list[Waveform]]:
        return await asyncio.gather(*(worker.generate([Request(None, seconds)], way) for seconds, way in ways))

    sounds, sizes = run(tiny_model, scene)
    assert [round(sound.seconds, 3) for (sound,) in sounds] == [seconds for seconds, _ in ways]
    assert sizes == [2, 2, 1]
    assert run(tiny_model, scene, batch=1)[1] == [1] * 5


def test_a_stream_inside_a_batch_disturbs_neither(tiny_model: AudioLM, female: Waveform, male: Waveform) -> None:
    requests = [Request(female.trim(1.0), 2.0, seed=1), Request(male.trim(1.2), 1.5, seed=2)]
    turns: list[bool] = []

    async def scene(worker: Worker) -> tuple[list[Waveform], list[list[Waveform]]]:
        async def listen(seed: int) -> list[Waveform]:
            parts = []
            async for part in worker.stream(lambda: tiny_model.stream(male.trim(0.8), 1.5, seed=seed)):
                parts.append(part)
                turns.append(batch.done())
            return parts

        batch = asyncio.ensure_future(worker.generate(requests, {}))
        await asyncio.sleep(0)
        heard = list(await asyncio.gather(listen(5), listen(6)))
        return await batch, heard

    (sounds, heard), _ = run(tiny_model, scene)
    assert not all(turns)  # some of it was heard while the batch ran
    for request, sound in zip(requests, sounds, strict=True):
        assert torch.equal(sound.samples, tiny_model.generate(request.prompt, request.seconds, seed=request.seed).samples)
    for seed, parts in zip((5, 6), heard, strict=True):
        alone = list(tiny_model.stream(male.trim(0.8), 1.5, seed=seed))
        assert torch.equal(torch.cat([each.samples for each in parts], 1), torch.cat([each.samples for each in alone], 1))


class Stub:
    """A model whose batches last as long as the test says; progress is told every millisecond."""

    def __init__(self) -> None:
        self.free, self.begun, self.told = threading.Event(), threading.Event(), 0

    def generate_batch(self, requests, progress, **_: Any) -> list[Waveform]:
        self.begun.set()
        if any(request.seed == 13 for request in requests):
            raise InputError("13 will not do")
        while not self.free.is_set():
            time.sleep(0.001)
            self.told += 1
            progress("semantic", self.told, 10_000)
        return [Waveform(torch.full((1, 1), float(request.seed)), 16_000) for request in requests]


def on_stub(scene: Callable[[Worker, Stub], Awaitable[Any]], **options: Any) -> list[int]:
    stub = Stub()

    async def play(worker: Worker) -> None:
        try:
            await scene(worker, stub)
        finally:
            stub.free.set()

    return run(stub, play, **options)[1]  # pyright: ignore[reportArgumentType]


def ask(worker: Worker, seed: int) -> "asyncio.Task[list[Waveform]]":
    return asyncio.ensure_future(worker.generate([Request(None, 1.0, seed=seed)], {}))


async def begun(stub: Stub) -> None:
    await asyncio.to_thread(stub.begun.wait, 10)


def test_a_full_queue_says_when_to_come_again_and_who_leaves_makes_room() -> None:
    async def scene(worker: Worker, stub: Stub) -> None:
        running = ask(worker, 0)
        await begun(stub)
        waiting = [ask(worker, seed) for seed in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy) as busy:
            await ask(worker, 3)
        assert busy.value.retry_after is not None
        assert 1 <= busy.value.retry_after <= 60
        with pytest.raises(Busy):
            await worker.call(len, "")
        waiting[0].cancel()
        await asyncio.sleep(0.01)
        last = ask(worker, 4)
        await asyncio.sleep(0.01)
        stub.free.set()
        assert [float((await task)[0].samples) for task in (running, waiting[1], last)] == [0, 2, 4]

    assert on_stub(scene, queue=2) == [1, 2]


class Clock(Stub):
    """A model that makes ten seconds of sound a second, however many together, and remembers what it made, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[float]] = []

    def generate_batch(self, requests, progress, **_: Any) -> list[Waveform]:
        self.begun.set()
        self.batches.append([request.seconds for request in requests])
        until = time.monotonic() + sum(self.batches[-1]) / 10
        while time.monotonic() < until:
            time.sleep(0.001)
            progress("semantic", 1, 2)
        return [Waveform(torch.full((1, 1), float(request.seed)), 16_000) for request in requests]


def on_clock(scene: Callable[[Worker, Clock], Awaitable[None]], **options: Any) -> list[list[float]]:
    clock = Clock()
    run(clock, lambda worker: scene(worker, clock), **options)  # pyright: ignore[reportArgumentType]
    return clock.batches


def several(worker: Worker, seconds: float, samples: int = 1) -> "asyncio.Task[list[Waveform]]":
    return asyncio.ensure_future(worker.generate([Request(None, seconds, seed=seed) for seed in range(samples)], {}))


def test_who_has_an_answer_finds_no_batch_running() -> None:
    async def play() -> None:
        # Between the answers and the next batch the worker's thread may be held up, here by what is told of a batch.
        worker = Worker(Clock(), tell=lambda *_: time.sleep(0.2), patience=1.0)  # pyright: ignore[reportArgumentType]
        try:
            for _ in range(3):
                await several(worker, 3)
                assert worker._ahead() == 0
        finally:
            await asyncio.to_thread(worker.close)

    asyncio.run(play())


def test_what_cannot_be_done_in_time_is_refused_once_the_rate_is_known() -> None:
    async def scene(worker: Worker, clock: Clock) -> None:
        await several(worker, 5, samples=4)  # 2 s of work in 1 s of patience: nothing is known yet
        with pytest.raises(Busy, match=r"20 s of sound are more than is made here in 1 s; ask for (9|10) s or less") as busy:
            await several(worker, 5, samples=4)
        assert busy.value.retry_after == 1
        long = several(worker, 8)
        await asyncio.sleep(0.02)
        with pytest.raises(Busy, match="busy; try again in 1 s"):
            await several(worker, 8)
        assert len(await several(worker, 0.5)) == 1  # a short one does not wait for those that are longer
        await long
        await several(worker, 20)  # one on an idle server is always tried

    assert sorted(on_clock(scene, patience=1.0)[-3:]) == [[0.5], [8], [20]]


def test_a_batch_is_bounded_and_short_and_long_ones_begin_in_turn() -> None:
    async def scene(worker: Worker, clock: Clock) -> None:
        sounds, *_ = await asyncio.gather(several(worker, 4, samples=5), *(several(worker, seconds) for seconds in (0.5, 1, 1)))
        assert [float(each.samples) for each in sounds] == [0, 1, 2, 3, 4]

    # Nothing is known when the first begins; after it, a quarter of 4.4 seconds is known to make eleven seconds of sound.
    assert on_clock(scene, patience=4.4) == [[0.5], [4, 4], [1, 1], [4, 4], [4]]


def test_a_short_one_waits_for_what_runs_only() -> None:
    async def scene(worker: Worker, clock: Clock) -> None:
        running = several(worker, 8)
        await asyncio.sleep(0.05)
        await asyncio.gather(running, several(worker, 8.5), several(worker, 9), several(worker, 1))

    assert on_clock(scene, patience=4.0)[:2] == [[8], [1]]


def test_a_batch_that_nobody_waits_for_is_given_up() -> None:
    async def scene(worker: Worker, stub: Stub) -> None:
        both = [ask(worker, 1), ask(worker, 2)]
        await begun(stub)
        both[0].cancel()
        await asyncio.sleep(0.05)
        told = stub.told
        await asyncio.sleep(0.05)
        assert stub.told > told  # the other one still waits
        both[1].cancel()
        await asyncio.sleep(0.1)
        told = stub.told
        await asyncio.sleep(0.1)
        assert stub.told == told
        stub.free.set()
        assert float((await ask(worker, 5))[0].samples) == 5

    assert on_stub(scene) == [1]


def test_only_the_guilty_one_of_a_batch_is_told() -> None:
    async def scene(worker: Worker, stub: Stub) -> None:
        stub.free.set()
        good, bad, also = await asyncio.gather(*(ask(worker, seed) for seed in (1, 13, 2)), return_exceptions=True)
        assert isinstance(bad, InputError)
        assert [float(each[0].samples) for each in (good, also)] == [1, 2]  # pyright: ignore[reportIndexIssue]

    on_stub(scene)


def test_streams_and_calls_have_their_turn_while_a_batch_runs() -> None:
    async def scene(worker: Worker, stub: Stub) -> None:
        running = ask(worker, 0)
        await begun(stub)
        assert await worker.call(lambda a, b: a + b, 2, 3) == 5
        assert [piece async for piece in worker.stream(lambda: iter(range(20)))] == list(range(20))
        with pytest.raises(ZeroDivisionError):
            await worker.call(lambda: 1 // 0)
        assert not running.done()
        stub.free.set()
        await running

    on_stub(scene)


def test_a_stream_runs_ahead_of_its_listener_by_little_and_stops_when_he_leaves() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    async def scene(worker: Worker, stub: Stub) -> None:
        stream = worker.stream(numbers)
        assert await anext(stream) == 0
        await asyncio.sleep(0.1)
        assert len(made) <= 1 + AHEAD
        with pytest.raises(Busy):
            await anext(worker.stream(numbers))  # one listener is all there may be
        await stream.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        assert await anext(worker.stream(lambda: iter([7]))) == 7
        await asyncio.sleep(0.05)
        assert len(made) <= 1 + AHEAD
        assert worker.waiting <= 1

    on_stub(scene, streams=1)


def test_closing_finishes_what_is_there_and_takes_nothing_more() -> None:
    async def scene(worker: Worker, stub: Stub) -> None:
        tasks = [ask(worker, seed) for seed in (1, 2)]
        await begun(stub)
        tasks.append(ask(worker, 3))
        await asyncio.sleep(0.01)
        closing = asyncio.ensure_future(asyncio.to_thread(worker.close))
        await asyncio.sleep(0.05)
        with pytest.raises(Busy) as busy:
            await ask(worker, 4)
        assert busy.value.retry_after is None
        assert not closing.done()
        stub.free.set()
        assert [float((await task)[0].samples) for task in tasks] == [1, 2, 3]
        await closing
        assert not worker.alive

    on_stub(scene)
