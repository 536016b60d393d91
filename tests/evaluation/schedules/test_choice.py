"""The choice under uncertainty, in worlds whose truth is known."""

import numpy as np
import pytest

from lwr.evaluation.schedules.choice import Choice, choose_schedule

EPSILON = 0.01


def draw(
    seed: int, queries: int, schedules: int = 200
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw a world of schedules that differ the more from the deepest exit, the cheaper they are.

    Returns:
        float64 [S, Q] and [Q], quality on dev, of schedules and of the deepest exit; float64 [S] and [1], the same
        as true means over all queries.
    """
    generator = np.random.default_rng(seed)
    flops = np.linspace(0, 1, schedules)
    loss = 0.25 * (1 - flops) ** 2.5 - 0.02
    truth = 0.6 - loss + 0.005 * generator.normal(size=schedules)
    reference = 0.6 + 0.25 * generator.normal(size=queries)
    walk = np.cumsum(generator.normal(size=(schedules, queries)), axis=0) / np.sqrt(schedules)
    noise = 0.2 * (walk[-1] - walk) + 0.03 * generator.normal(size=(schedules, queries))
    return truth[:, None] - 0.6 + reference + noise, reference, truth, np.array([0.6])


def misses(choose, worlds: int = 60, queries: int = 80) -> float:
    """Return the share of worlds in which the true quality of the chosen schedule breaks the promise."""
    broken = 0
    for seed in range(worlds):
        quality, reference, truth, deepest = draw(seed, queries)
        index = choose(quality, reference)
        broken += index is not None and truth[index] < (1 - EPSILON) * deepest[0]
    return broken / worlds


def test_choice_breaks_the_promise_no_more_often_than_stated():
    flops = np.arange(200.0)
    assert misses(lambda q, r: choose_schedule(q, flops, r, EPSILON, confidence=0.9).index) <= 0.1


def test_the_bound_is_within_what_may_be_lost():
    """Half of the repetitions find nothing and fall back to the deepest exit, which loses nothing."""
    noise = np.random.default_rng(0).normal(size=100)
    noise = (noise - noise.mean()) / noise.std()
    reference = np.full(100, 0.5)
    quality = (1 - EPSILON) * reference + 0.2 * (
        noise + 1 / np.sqrt(100)
    )  # a standard error above the promise
    choice = choose_schedule(quality[None], np.ones(1), reference, EPSILON, confidence=0.9)
    assert (choice.index, choice.margin) == (0, pytest.approx(1))
    assert choice.shortfall_bound <= EPSILON


def test_the_cheapest_that_is_good_enough_on_dev_breaks_it_far_more_often():
    """The rule that `choose_schedule` replaces, in the same worlds: the test above can fail."""

    def cheapest_on_dev(quality: np.ndarray, reference: np.ndarray) -> int:
        return int(np.argmax(quality.mean(axis=1) >= (1 - EPSILON) * reference.mean()))

    assert misses(cheapest_on_dev) > 0.25


def test_more_queries_choose_cheaper_schedules():
    flops = np.arange(200.0)
    chosen = {}
    for queries in (40, 1000):
        quality, reference, *_ = draw(0, queries)
        chosen[queries] = choose_schedule(quality, flops, reference, EPSILON, 0.9).index
    assert chosen[1000] is not None
    assert chosen[40] is None or flops[chosen[1000]] < flops[chosen[40]]


def test_a_schedule_that_always_equals_the_deepest_exit_is_chosen():
    reference = np.random.default_rng(0).uniform(0.2, 1, 50)
    quality = np.stack([reference - 0.1, reference, reference])
    choice = choose_schedule(quality, np.array([0.2, 0.5, 1.0]), reference, EPSILON, 0.9)
    assert choice.index == 1
    assert choice.shortfall == pytest.approx(0)
    assert choice.shortfall_bound == pytest.approx(0)


def test_of_equal_costs_the_better_is_chosen_whatever_the_order():
    reference = np.full(30, 0.5)
    quality = np.stack([reference, reference + 0.1, reference + 0.2])
    assert choose_schedule(quality, np.array([1.0, 0.5, 0.5]), reference, EPSILON, 0.9).index == 2


def test_without_a_schedule_that_keeps_the_promise_there_is_no_choice():
    reference = np.full(30, 0.5)
    choice = choose_schedule(reference[None] - 0.1, np.ones(1), reference, EPSILON, 0.9)
    assert choice.index is None
    assert choice.queries_needed is None


def test_a_reference_that_ranks_nothing_cannot_lose():
    """For example a deepest exit whose weights turn its ranking around."""
    quality = np.stack([np.zeros(20), np.full(20, 0.1)])
    choice = choose_schedule(quality, np.array([0.2, 0.5]), np.zeros(20), EPSILON, 0.9)
    assert (choice.index, choice.shortfall, choice.shortfall_bound) == (0, 0, 0)


def test_too_few_queries_are_said_with_the_number_that_would_do():
    generator = np.random.default_rng(0)
    reference = generator.uniform(0.4, 0.6, 12)
    quality = (reference + 0.02 + 0.2 * generator.normal(size=12))[None]
    quality += 0.02 - (quality - reference).mean()  # on dev it gains 0.02, which may be chance
    choice = choose_schedule(quality, np.ones(1), reference, EPSILON, 0.95)
    assert choice.index is None
    assert choice.queries_needed is not None
    assert choice.queries_needed > 12


def test_a_choice_is_repeatable():
    quality, reference, *_ = draw(3, 60)
    first, second = (choose_schedule(quality, np.arange(200.0), reference, EPSILON, 0.9) for _ in range(2))
    assert first == second
    assert isinstance(first, Choice)
