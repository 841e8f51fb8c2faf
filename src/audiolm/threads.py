"""How many threads the processor bears at this moment.

A product that is dealt out to threads is done when the last of them is. Alone, two are nearly twice as fast as one; where another
process keeps a core, they wait for the one that has to share it, thousands of times a second, and are up to hundreds of times
slower than one (docs/performance.md). So it is tried before work begins.
"""

import os
import time

import torch

SLICES, SECONDS = 3, 0.02  # of each trial: who gets a core changes every few milliseconds
LEAST = 1 << 15  # elements that torch gives to a thread


def bearable() -> int:
    """Torch's number of threads, or its half, or the half of that: the most that are now faster than one in all of a trial.

    It takes 80 ms where all are. The number in use is as before, and whoever sets OMP_NUM_THREADS has decided himself. How many
    work on a product does not change its rows, and so a seed keeps its sound.
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
    """How often in a second so many threads take the sigmoid of all values together."""
    torch.set_num_threads(threads)
    values.sigmoid_()  # the threads are there now
    start, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < SECONDS:
        values.sigmoid_()
        done += 1
    return done / spent
