"""Times in turns: equal computations agree on a machine with changing load, and unequal ones do not."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from lwr.evaluation.statistics.timing import make_monotone, relative_times, time_in_turns


class BusyMachine:
    """A clock on which computations take longer or shorter as the load of the machine changes."""

    def __init__(self, load, noise: float = 0.05):
        self.now, self.load, self.noise = 0.0, load, noise
        self.rng = np.random.default_rng(1)

    def run(self, work: float, item: float) -> None:
        """Compute `work` x `item`; the load is that at its start."""
        jitter = 1 + self.noise * abs(self.rng.normal())
        self.now += work * item * self.load(self.now) * jitter

    def times(self, works: list[float], items: list[float]) -> np.ndarray:
        return time_in_turns(self.run, works, items, clock=lambda: self.now)


LOADS = {
    "none": lambda now: 1.0,
    "grows": lambda now: 1 + now / 200,
    "begins": lambda now: 4.0 if now > 100 else 1.0,
    "comes and goes": lambda now: 4.0 if int(now / 70) % 2 else 1.0,
}


@pytest.mark.parametrize("load", LOADS)
def test_equal_computations_agree_and_unequal_ones_do_not(load):
    layers = [1.0, 2.0, 3.0]
    seconds = BusyMachine(LOADS[load]).times([*layers, *layers], [1.0, 1.2, 0.8, 1.1, 0.9, 1.3] * 3)
    low, ratio, high = relative_times(seconds, reference=2)
    for first, second in ((0, 3), (1, 4), (2, 5)):
        assert low[first] <= high[second]
        assert low[second] <= high[first]
        assert ratio[first] == pytest.approx(ratio[second], rel=0.1)
    for shallow, deep in ((0, 1), (1, 2), (3, 4), (4, 5)):
        assert high[shallow] < low[deep]
    assert ratio == pytest.approx([1 / 3, 2 / 3, 1] * 2, rel=0.1)


def test_times_measured_apart_would_disagree():
    """The loads of the test above are not harmless: times of one arm after the other differ by a factor."""
    machine = BusyMachine(lambda now: 4.0 if now > 360 else 1.0)  # the first arm takes about 360 seconds
    first, second = (machine.times([1.0, 2.0, 3.0], [1.0] * 20) for _ in range(2))
    assert np.median(second[2]) > 3 * np.median(first[2])


def test_all_contenders_run_an_item_before_the_next_in_changing_order():
    calls = []
    seconds = time_in_turns(lambda *call: calls.append(call), "abc", [1, 2], repeats=4)
    assert seconds.shape == (3, 4, 2)
    turns = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert [{item for _, item in turn} for turn in turns] == [{1}, {2}] * 4
    assert all({contender for contender, _ in turn} == set("abc") for turn in turns)
    assert len({tuple(contender for contender, _ in turn) for turn in turns}) > 2


def test_seconds_are_of_their_contender_round_and_item():
    machine = BusyMachine(lambda now: 1.0, noise=0)
    seconds = machine.times([1.0, 10.0], [1.0, 2.0])
    assert seconds == pytest.approx(np.array([[[1.0, 2.0]] * 3, [[10.0, 20.0]] * 3]))


def test_ratio_is_median_over_items_of_median_over_rounds():
    reference = np.array([[1.0, 2.0, 4.0]] * 3)
    other = np.array([[2.0, 2.0, 12.0], [2.0, 2.0, 12.0], [99.0, 0.1, 99.0]])  # ratios 2, 1 and 3
    low, ratio, high = relative_times(np.stack([reference, other]), reference=0)
    assert (low[0], ratio[0], high[0]) == (1, 1, 1)
    assert ratio[1] == 2
    assert low[1] <= 1
    assert high[1] >= 3


def test_one_list_has_the_spread_of_its_rounds():
    seconds = np.array([[[1.0]] * 3, [[2.0], [3.0], [5.0]]])
    low, ratio, high = relative_times(seconds, reference=0)
    assert (low[1], ratio[1], high[1]) == (2, 3, 5)


def test_interval_covers_the_true_ratio():
    """Over many measurements of a contender of ratio 2, at least nine of ten intervals hold it."""
    rng = np.random.default_rng(0)
    seconds = rng.lognormal(sigma=0.3, size=(200, 3, 20)) * 2
    reference = rng.lognormal(sigma=0.3, size=(200, 3, 20))
    held = 0
    for both in zip(reference, seconds, strict=True):
        low, _, high = relative_times(np.stack(both), reference=0)
        held += low[1] <= 2 <= high[1]
    assert held >= 180


def test_times_of_layers_never_fall_with_depth():
    times = np.array([[1.0, 3.0, 2.0, 4.0], [1.5, 3.5, 2.5, 4.5], [2.0, 7.0, 3.0, 4.0]])
    expected = [[1, 2.5, 2.5, 4], [1.5, 3, 3, 4.5], [2, 14 / 3, 14 / 3, 14 / 3]]
    assert make_monotone(times) == pytest.approx(np.array(expected))


def test_monotone_times_keep_low_ratio_and_high_in_order():
    times = np.sort(np.random.default_rng(0).random((3, 50)), axis=0)
    low, ratio, high = make_monotone(times)
    assert (low <= ratio).all()
    assert (ratio <= high).all()
    assert (np.diff(ratio) >= 0).all()


def burn() -> None:
    matrix = np.random.default_rng(0).random((200, 200))
    while True:
        np.matmul(matrix, matrix)


@contextmanager
def load():
    """Keep every processor busy twice over."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=burn, daemon=True) for _ in range(2 * (os.cpu_count() or 1))]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


@pytest.mark.slow
def test_equal_computations_agree_beside_processes_that_come_and_go():
    matrix = np.random.default_rng(0).random((150, 150))
    calls = []

    with ExitStack() as loads:

        def run(work: int, item: int) -> None:
            if len(calls) % 60 == 20:
                loads.enter_context(load())
            elif len(calls) % 60 == 40:
                loads.close()
            calls.append(work)
            for _ in range(100 * work):
                np.matmul(matrix, matrix)

        seconds = time_in_turns(run, [2, 1, 4, 1, 4], list(range(12)))
    low, ratio, high = relative_times(seconds, reference=0)
    for first, second in ((1, 3), (2, 4)):  # of 95% intervals, some do not hold the true ratio by a little
        assert low[first] <= 1.1 * high[second]
        assert low[second] <= 1.1 * high[first]
    assert max(ratio[1], ratio[3]) < min(ratio[2], ratio[4])
