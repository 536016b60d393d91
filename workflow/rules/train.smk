# One training per cell, on base models that are fetched and checked once.


rule base:
    output:
        BASE_MODEL,
    log:
        f"{LOGS}/base/{{base_model}}.log",
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        base=lambda w: as_json(GRID.base_models[w.base_model].base_settings()),
        code=CODE["base"],
    shell:
        "lwr base --base {params.base:q} --out {output:q} 2>&1 | tee {log:q}"


rule train:
    input:
        base=BASE_MODEL,
        groups=GROUPS,
        teacher=cell_teacher,
        dev_corpus=dev_collection(CORPUS),
        dev_queries=dev_collection(QUERIES),
        dev_qrels=dev_collection(QRELS),
        dev_run=dev_collection(RUN),
    output:
        directory(MODEL),
    log:
        f"{LOGS}/train/{CELL}.log",
    threads: threads_each(len(model_paths()))
    resources:
        gpu=1,
        processes=1,
        mem_mb=16000,
        runtime=1440,
    params:
        folder=lambda w, input: folder_of(input.dev_corpus),
        base=lambda w: as_json(GRID.base_models[w.base_model].base_settings()),
        settings=lambda w: as_json(GRID.train_settings(w.base_model, w.variant)),
        cell=lambda w: as_json({**arm_of(w), "seed": int(w.seed)}),
        teacher=lambda w, input: repeated_option("--teacher-run", input.teacher),
        label=f"train {CELL}",
        measure=lambda w: GRID.dev_measure(w.base_model, w.variant),
        code=CODE["train"],
    shell:
        "lwr launch --gpus {resources.gpu} --processes {resources.processes} --"
        " train --base {params.base:q} --start-layer {wildcards.start_layer} --settings {params.settings:q}"
        " --groups {input.groups:q} {params.teacher} --collection {params.folder:q} --dev-run {input.dev_run:q}"
        " --seed {wildcards.seed} --cell {params.cell:q} --measure {params.measure:q}"
        " --out {output:q} --label {params.label:q} 2>&1 | tee {log:q}"
