# From scores to measures per query, and to probabilities of relevance.


rule evaluate:
    input:
        scores=SCORES,
        cascade=CASCADE,
        fusion=FUSION_IF_ANY,
        qrels=ranked_collection(QRELS),
    output:
        measures=MEASURES,
        runs=directory(RUNS),
    log:
        f"{LOGS}/evaluate/{CELL}/{{tested}}/{{split}}.log",
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        folder=lambda w, input: collection_of(input.qrels),
        fusion=lambda w, input: repeated_option("--fusion", input.fusion),
        measures=lambda w: ",".join(GRID.measures_of(w.tested)),
        cell=lambda w: as_json({**ranked_arm(w), "seed": int(w.seed)}),
        code=CODE["evaluate"],
    shell:
        "lwr evaluate --scores {input.scores:q} --collection {params.folder:q} --split {wildcards.split}"
        " --measures {params.measures:q} --cascade {input.cascade:q} {params.fusion} --cell {params.cell:q}"
        " --runs {output.runs:q} --out {output.measures:q} 2>&1 | tee {log:q}"


rule calibrate:
    input:
        dev=lambda w: of_choosing(SCORES, w),
        test=SCORES.replace("{split}", "test"),
        fusion=FUSION_IF_ANY,
        dev_qrels=choosing_qrels,
        test_qrels=ranked_collection(QRELS, split="test"),
    output:
        CALIBRATION,
    log:
        f"{LOGS}/calibrate/{CELL}/{{tested}}.log",
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        folder=lambda w, input: collection_of(input.test_qrels),
        chosen_on=lambda w, input: repeated_option("--dev-collection", choosing_collections(w, input)),
        fusion=lambda w, input: repeated_option("--fusion", input.fusion),
        cell=lambda w: as_json({**ranked_arm(w), "seed": int(w.seed)}),
        code=CODE["calibrate"],
    shell:
        "lwr calibrate --dev {input.dev:q} --test {input.test:q} --collection {params.folder:q} {params.chosen_on}"
        " {params.fusion} --cell {params.cell:q} --out {output:q} 2>&1 | tee {log:q}"
