"""Whether a measure can be computed, by the name that ir_measures gives it."""

from __future__ import annotations

import ir_measures

from lwr.config.problems import nearest


def measure_problem(name: str) -> str | None:
    """What is wrong with the name of a measure, and the nearest right one; None: nothing."""
    try:
        known = ir_measures.DefaultPipeline.supports(ir_measures.parse_measure(name))
    except NameError:
        family, at, cutoff = name.partition("@")
        hint = nearest(family, {measure.NAME for measure in ir_measures.measures.registry.values()})
        return f"{name} is no measure{hint.replace('`?', f'{at}{cutoff}`?')}"
    except (
        ValueError,
        AssertionError,
        SyntaxError,
        TypeError,
    ):  # how ir_measures cannot read the rest of a name
        return f"{name} is no measure; write it as nDCG@10, RR or P(rel=2)@5"
    return None if known else f"{name} cannot be computed with what is installed"
