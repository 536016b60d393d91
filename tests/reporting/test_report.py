"""The report: a page that needs only a browser, and how it formats tables and provenance."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from report_inputs import LAST, PRIMARY, Inputs, arm, make, nine_arms

from lwr.common.json_lines import write_json
from lwr.common.results_tree import FIGURES
from lwr.reporting.figures import figures
from lwr.reporting.report import (
    format_table,
    model_origins,
    numeric_columns,
    render_markdown,
    report,
    separate_shared_values,
)


def page_of(inputs: Inputs, folder: Path, title: str = "Which layer?") -> str:
    """The report on figures that were not drawn."""
    for name in FIGURES:
        write_json(folder / f"figures/{name}.json", {"title": "</script><!--", "facet": {}})
    report(inputs.tables, folder / "figures", inputs.models, title, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_recommendation_is_first_and_all_links_have_targets(tmp_path):
    page = page_of(make(tmp_path), tmp_path, "A < B")
    places = [page.index(text) for text in ("<h1>A &lt; B", "<h2>Recommendation", "<figure", "<h2>Tables")]
    assert places == sorted(places)
    anchors = re.findall(r'href="#([\w-]+)"', page)
    assert len(anchors) == 14
    assert all(page.count(f'id="{anchor}"') == 1 for anchor in anchors)


def test_report_loads_nothing_from_network_or_files(tmp_path):
    page = page_of(make(tmp_path), tmp_path)
    assert "default-src 'none'" in page
    assert "unsafe-eval" not in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)


def test_specification_cannot_end_its_script(tmp_path):
    page = page_of(make(tmp_path), tmp_path)
    scripts = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    assert [json.loads(text)["title"] for text in scripts] == ["</script><!--"] * len(FIGURES)


def test_comparisons_on_dev_are_not_shown(tmp_path):
    page = page_of(make(tmp_path), tmp_path)
    shown = page[page.index('id="table-comparisons"') :]
    assert "split test" in shown
    assert shown[: shown.index("</table>")].count("<tr>") == 1 + 2


def test_fused_exits_and_the_bound_of_a_cascade_are_shown(tmp_path):
    page = page_of(make(tmp_path, [arm()], fused=True), tmp_path)
    assert "<td>layer 4, fused</td>" in page
    about = page[page.index('id="table-cascades"') :].partition("</p>")[0]
    assert "confidence 0.900, expected shortfall 0.002, shortfall bound 0.009, dev queries 80" in about


def test_empty_table_says_so(tmp_path):
    inputs = make(tmp_path)
    cost = pd.read_csv(inputs.tables / "cost.csv")
    cost[:0].to_csv(inputs.tables / "cost.csv", index=False)
    assert page_of(inputs, tmp_path).count("There are no rows.") == 1


def test_render_markdown_lowers_headings_and_escapes_html():
    html = render_markdown("# Deploy\n\n## Why\n\n<script>x</script>\n\n|a|\n|--:|\n|1|\n")
    assert "<h2>Deploy</h2>" in html
    assert "<h3>Why</h3>" in html
    assert "<script>" not in html
    assert "<td" in html


def text(**columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_format_table_formats_numbers_truth_values_and_exits():
    table = text(
        n=["12000000.000000", "30", ""],
        p=["0.01234567890123456", "0.00002", "0.0"],
        ms=["123.456", "7.0", "8.1"],
        chosen=["True", "False", "True"],
        exit=["first_stage", "layer_4", "cascade"],
        variant=["layer_wise", "1.50", "x_1"],
        empty=["", "", ""],
    )
    shown = format_table(table)
    assert shown["n"].tolist() == ["12,000,000", "30", ""]
    assert shown["p"].tolist() == ["0.012", "2.0e-05", "0.000"]
    assert shown["ms"].tolist() == ["123.5", "7.0", "8.1"]
    assert shown["chosen"].tolist() == ["yes", "no", "yes"]
    assert shown["exit"].tolist() == ["first stage", "layer 4", "cascade"]
    assert shown["variant"].tolist() == ["layer_wise", "1.50", "x_1"]
    assert "empty" not in shown
    assert numeric_columns(shown) == {"n", "p", "ms"}


def test_deviation_and_interval_are_beside_their_mean():
    table = format_table(
        text(
            **{
                "m": ["0.5", "0.4"],
                "r": ["0.9", "0.8"],
                "m sd": ["0.01", ""],
                "m low": ["0.4", ""],
                "m high": ["0.6", ""],
            }
        )
    )
    assert table.columns.tolist() == ["m", "m 95% interval", "r"]
    assert table["m"].tolist() == ["0.500 ± 0.010", "0.400"]
    assert table["m 95% interval"].tolist() == ["0.400 to 0.600", ""]
    assert numeric_columns(table) == {"m", "m 95% interval", "r"}


def test_values_shared_by_all_rows_are_separated():
    table = text(
        **{
            "base model": ["", "m", "m"],
            "variant": ["", "a", "b"],
            "seeds": ["3", "3", "3"],
            "dev": ["1"] * 3,
        }
    )
    common, rest = separate_shared_values(table)
    assert common == {"base model": "m", "seeds": "3"}
    assert rest.columns.tolist() == ["variant", "dev"]
    assert separate_shared_values(table[:1])[0] == {}


def test_model_origins_separates_shared_facts(tmp_path):
    shared, models = model_origins(make(tmp_path, seeds=2).models)
    assert shared["packages.torch"] == "2.13.0"
    assert shared["git_commit"] == "337a3e1c0ffe…+"
    assert shared["base_fingerprint"] == "5a5a5a5a5a5a…"
    assert "energy_joules" not in shared  # it was not measured
    assert models.columns.tolist() == ["model", "start_layer", "seed", "wall_seconds"]
    assert models["model"][0] == "scifact/minilm/start2/default/seed1"


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
@pytest.mark.parametrize(
    "case",
    [
        {"seeds": 3},
        {"arms": nine_arms(), "seeds": 3},
        pytest.param(
            {"arms": [arm(), arm(start=4), arm("nfcorpus", start=LAST, base="qwen")]},
            marks=pytest.mark.nightly,
        ),
        pytest.param({"arms": [arm(start=LAST)], "cascade": False, "cost": False}, marks=pytest.mark.nightly),
    ],
    ids=["two", "nine", "data-sets", "single-exit"],
)
def test_report_in_a_browser(tmp_path, chromium, case, size):
    inputs = make(tmp_path, **case)
    figures(inputs.tables, inputs.measures, inputs.models, inputs.calibrations, PRIMARY, tmp_path / "figures")
    file = tmp_path / "report.html"
    report(inputs.tables, tmp_path / "figures", inputs.models, "Which layer?", file)

    width, height = size
    page = chromium.new_page(viewport={"width": width, "height": height})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function("document.querySelectorAll('.chart svg.marks').length === 7")

    assert asked == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in FIGURES:
        marks = page.locator(f"#{name} svg.marks")
        timed = name != "latency" or case.get("cost", True)
        assert marks.locator("path, text").count() > (20 if timed else 0)
        box = marks.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    recommended, first = page.locator("h2", has_text="Recommendation"), page.locator("figure").first
    assert recommended.bounding_box()["y"] < first.bounding_box()["y"]

    _sorts_by_click_and_by_key(page)
    if "arms" not in case:
        _fades_what_is_not_picked(page)
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert said == []
    page.close()


def _sorts_by_click_and_by_key(page) -> None:
    table = page.locator("#table-layers table")
    head = table.locator("th", has=page.get_by_text(PRIMARY, exact=True))
    column = head.evaluate("head => head.cellIndex")
    cells = table.locator(f"tbody td:nth-child({column + 1})")

    def numbers() -> list[float]:
        return [float(cell.split()[0]) for cell in cells.all_inner_texts()]

    before = numbers()
    head.locator("button").click()
    assert numbers() == sorted(before)
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert numbers() == sorted(before, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    assert table.locator("th[aria-sort]").count() == 1


def _fades_what_is_not_picked(page) -> None:
    lines = page.locator("#quality svg.marks g.mark-line path")
    assert {line.get_attribute("opacity") for line in lines.all()} <= {None, "1"}
    page.locator("#quality svg.marks .role-legend-label text", has_text="start 4").click()
    page.wait_for_function(
        "[...document.querySelectorAll('#quality svg.marks g.mark-line path')]"
        ".some((line) => line.getAttribute('opacity') === '0.08')"
    )
