# Collections, their first stage, and training groups.


rule collect:
    output:
        corpus=CORPUS,
        queries=QUERIES,
        qrels=directory(QRELS),
    log:
        f"{LOGS}/collect/{{dataset}}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        folder=lambda w, output: folder_of(output.corpus),
        dataset=lambda w: settings(GRID.datasets[w.dataset].collection()),
        code=CODE["collect"],
    shell:
        "lwr collect --dataset {params.dataset:q} --out {params.folder:q} 2>&1 | tee {log:q}"


rule retrieve:
    input:
        corpus=CORPUS,
        queries=QUERIES,
        qrels=QRELS,
    output:
        RUN,
    log:
        f"{LOGS}/retrieve/{{dataset}}.{{split}}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        folder=lambda w, input: folder_of(input.corpus),
        settings=lambda w: settings(GRID.datasets[w.dataset].first_stage),
        code=CODE["retrieve"],
    shell:
        "lwr retrieve --collection {params.folder:q} --split {wildcards.split}"
        " --settings {params.settings:q} --out {output:q} 2>&1 | tee {log:q}"


rule mine:
    input:
        corpus=CORPUS,
        queries=QUERIES,
        qrels=QRELS,
        run=expand(RUN, split="train", allow_missing=True),
    output:
        GROUPS,
    log:
        f"{LOGS}/mine/{{dataset}}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        folder=lambda w, input: folder_of(input.corpus),
        settings=lambda w: settings(GRID.datasets[w.dataset].mining),
        code=CODE["mine"],
    shell:
        "lwr mine --collection {params.folder:q} --run {input.run:q}"
        " --settings {params.settings:q} --out {output:q} 2>&1 | tee {log:q}"
