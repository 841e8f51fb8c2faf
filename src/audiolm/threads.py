"""How many threads the CPU can make use of right now.

A parallel operation ends when its slowest thread does. On an idle machine, two threads are nearly twice as fast as one; if
another process keeps a core busy, they wait thousands of times a second for the thread that shares it, and may be hundreds of
times slower than one (docs/performance.md). So the number is tested before work begins.
"""

import os
import time

import torch

SLICES, SECONDS = 3, 0.02  # slices of a trial, and seconds of each: the scheduler reassigns cores every few milliseconds
LEAST = 1 << 15  # elements that torch gives to each thread


def bearable() -> int:
    """Torch's number of threads, halved until it is faster than one thread in every slice of a trial.

    Takes 80 ms if no halving is needed. Torch's setting is left unchanged, and there is no trial if OMP_NUM_THREADS is set. The
    number of threads does not change results, so a seed keeps its sound.
    """
    before = threads = torch.get_num_threads()
    if threads == 1 or "OMP_NUM_THREADS" in os.environ:
        return threads
    values = torch.zeros(threads * LEAST)
    try:
        alone = _rate(values, 1)
        while threads > 1 and any(_rate(values, threads) <= alone for _ in range(SLICES)):
            threads //= 2
    finally:
        torch.set_num_threads(before)
    return threads


def _rate(values: torch.Tensor, threads: int) -> float:
    """How often per second `threads` threads compute the sigmoid of all values."""
    torch.set_num_threads(threads)
    values.sigmoid_()  # warm-up: starts the threads
    start, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < SECONDS:
        values.sigmoid_()
        done += 1
    return done / spent
