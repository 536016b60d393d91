"""Small lists of scored passages, and schedules over them."""

from __future__ import annotations

import pandas as pd
from hypothesis import settings
from hypothesis import strategies as st

from lwr.common.exits import exit_name
from lwr.formats.trec import best_first
from lwr.model.cascade_schedule import Schedule

LAYERS = (2, 3, 5)


def score_table(
    lists: dict[str, dict[str, tuple[float, ...]]], layers: tuple[int, ...] = LAYERS
) -> pd.DataFrame:
    """Return what `lwr score` would write. lists: query -> passage -> its score at each layer; lengths differ."""
    rows = [
        (query, doc, 10 + int(doc[1:]), 0.0, *scores)
        for query, docs in lists.items()
        for doc, scores in docs.items()
    ]
    names = [exit_name(layer) for layer in layers]
    table = pd.DataFrame(rows, columns=["query_id", "doc_id", "tokens", "first_stage", *names])
    return table.astype({"tokens": "int32", **dict.fromkeys(names, "float32")})


def rank_by_stages(
    docs: dict[str, tuple[float, ...]], schedule: Schedule, layers: tuple[int, ...] = LAYERS
) -> tuple[list[str], dict[str, int]]:
    """Rank a list stage by stage; return the ranking, and the layer to which each passage is read."""
    alive, dropped, depth = list(docs), [], {}
    for layer, survivors in [*schedule.keep, (schedule.last, len(docs))]:
        depth |= dict.fromkeys(alive, layer)
        best = [doc for doc, _ in best_first((doc, docs[doc][layers.index(layer)]) for doc in alive)]
        alive, dropped = best[:survivors], best[survivors:] + dropped
    return alive + dropped, depth


# Few distinct values: equal scores are the rule. Lists of any length, also none.
scores_of_a_passage = st.tuples(*[st.integers(-2, 2).map(float)] * len(LAYERS))
lists = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3"]),
    st.dictionaries(st.sampled_from([f"d{i}" for i in range(12)]), scores_of_a_passage, min_size=1),
    min_size=1,
)


@st.composite
def any_schedule(draw) -> Schedule:
    *above, last = sorted(draw(st.sets(st.sampled_from(LAYERS), min_size=1)))
    return Schedule(tuple((layer, draw(st.integers(1, 13))) for layer in above), last)


few_examples = settings(max_examples=25, deadline=None)
