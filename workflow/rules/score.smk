# All exits of all candidates in one pass.


rule score:
    input:
        model=MODEL,
        corpus=CORPUS,
        queries=QUERIES,
        run=RUN,
    output:
        SCORES,
    params:
        folder=COLLECTION,
        settings=settings(GRID.score),
        label=f"score {CELL} {{split}}",
        code=CODE["score"],
    log:
        f"{LOGS}/score/{CELL}/{{split}}.log",
    conda:
        "../../environment.yml"
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=480,
    shell:
        "lwr score --model {input.model:q} --collection {params.folder:q} --split {wildcards.split}"
        " --run {input.run:q} --settings {params.settings:q} --out {output:q} --label {params.label:q} 2>&1 | tee {log:q}"
