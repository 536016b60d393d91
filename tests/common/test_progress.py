"""Progress is shown on stderr, one line per interval outside a terminal."""

import pytest

from lwr.common.progress import format_duration, show_progress


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_duration_has_hours_only_if_needed(seconds, text):
    assert format_duration(seconds) == text


def test_progress_yields_all_items_and_reports_the_last(capsys):
    assert list(show_progress("abc", 3, "score")) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("score: 3/3 (100%), 0:00 passed")


def test_progress_reports_every_item_at_interval_zero(capsys):
    list(show_progress("ab", 2, "score", every=0.0))
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "score: 1/2 (50%)",
        "score: 2/2 (100%)",
    ]
