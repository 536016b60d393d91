# From scores to measures to the tables people read.


rule evaluate:
    input:
        scores=SCORES,
        qrels=of_tested(QRELS),
    output:
        MEASURES,
    log:
        f"{LOGS}/evaluate/{CELL}/{{tested}}/{{split}}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        folder=lambda w, input: folder_of(input.qrels),
        measures=lambda w: ",".join(GRID.measures_of(w.tested)),
        cell=lambda w: settings(
            {
                "dataset": w.tested,
                "trained_on": w.dataset,
                "base_model": w.base_model,
                "start_layer": int(w.start_layer),
                "variant": w.variant,
                "seed": int(w.seed),
            }
        ),
        code=CODE["measures"],
    shell:
        "lwr evaluate --scores {input.scores:q} --collection {params.folder:q} --split {wildcards.split}"
        " --measures {params.measures:q} --cell {params.cell:q} --out {output:q} 2>&1 | tee {log:q}"


rule tables:
    input:
        of_each_cell(MEASURES, split="test"),
    output:
        [
            report(
                table,
                caption="../report/layers.rst",
                category="Quality by layer",
                labels={"table": "layers", "format": Path(table).suffix[1:]},
            )
            for table in LAYERS_TABLE
        ],
    log:
        f"{LOGS}/tables.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        folder=lambda w, output: folder_of(output[0]),
        primary=GRID.measures[0],
        code=CODE["tables"],
    shell:
        "lwr tables {input:q} --primary {params.primary:q} --out {params.folder:q} 2>&1 | tee {log:q}"
