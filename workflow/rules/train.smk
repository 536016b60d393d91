# One training per cell, on base models that are fetched and checked once.


rule base:
    output:
        BASE_MODEL,
    params:
        base=lambda w: settings(GRID.base_models[w.base_model].identity()),
        start_layers=lambda w: ",".join(map(str, GRID.start_layers_of(w.base_model))),
        code=CODE["checkpoint"],
    log:
        f"{LOGS}/base/{{base_model}}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
        runtime=120,
    shell:
        "lwr base --base {params.base:q} --start-layers {params.start_layers} --out {output:q} 2>&1 | tee {log:q}"


rule train:
    input:
        base=BASE_MODEL,
        groups=GROUPS,
        corpus=CORPUS,
        queries=QUERIES,
        qrels=QRELS,
        dev_run=expand(RUN, split="dev", allow_missing=True),
    output:
        directory(MODEL),
    params:
        folder=COLLECTION,
        base=lambda w: settings(GRID.base_models[w.base_model].identity()),
        settings=lambda w: settings(GRID.train_settings(w.base_model, w.variant)),
        label=f"train {CELL}",
        code=CODE["train"],
    log:
        f"{LOGS}/train/{CELL}.log",
    conda:
        "../../environment.yml"
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=1440,
    shell:
        "lwr train --base {params.base:q} --start-layer {wildcards.start_layer} --settings {params.settings:q}"
        " --groups {input.groups:q} --collection {params.folder:q} --dev-run {input.dev_run:q}"
        " --seed {wildcards.seed} --out {output:q} --label {params.label:q} 2>&1 | tee {log:q}"
