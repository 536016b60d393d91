# Collections, their first stage, and training groups: mined from a collection, or made elsewhere.

from lwr.formats.beir import SPLITS

EMBEDDED = [name for name, dataset in GRID.datasets.items() if any(map(dataset.needs_embeddings, SPLITS))]
ADOPTED = [name for name, dataset in GRID.datasets.items() if not dataset.source.is_collection]
COLLECTED = [name for name in GRID.datasets if name not in ADOPTED]


rule collect:
    output:
        corpus=CORPUS,
        queries=QUERIES,
        qrels=expand(QRELS, split=SPLITS, allow_missing=True),
    log:
        f"{LOGS}/collect/{{dataset}}.log",
    wildcard_constraints:
        dataset=any_of(COLLECTED),
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        folder=lambda w, output: folder_of(output.corpus),
        dataset=lambda w: as_json(GRID.datasets[w.dataset].collect_settings()),
        code=CODE["collect"],
    shell:
        "lwr collect --dataset {params.dataset:q} --out {params.folder:q} 2>&1 | tee {log:q}"


rule embed:
    input:
        corpus=CORPUS,
        queries=QUERIES,
    output:
        directory(EMBEDDINGS),
    log:
        f"{LOGS}/embed/{{dataset}}.log",
    wildcard_constraints:
        dataset=any_of(EMBEDDED),
    threads: threads_each(len(EMBEDDED))
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=480,
    params:
        folder=lambda w, input: folder_of(input.corpus),
        settings=lambda w: as_json(GRID.datasets[w.dataset].first_stage.embed_settings()),
        files=lambda w: GRID.datasets[w.dataset].first_stage.digest(),
        label="embed {dataset}",
        code=CODE["embed"],
    shell:
        "lwr launch --gpus {resources.gpu} --"
        " embed --collection {params.folder:q} --settings {params.settings:q} --out {output:q}"
        " --label {params.label:q} 2>&1 | tee {log:q}"


rule retrieve:
    input:
        corpus=CORPUS,
        queries=QUERIES,
        qrels=QRELS,
        embeddings=embeddings_of,
        given=lambda w: local(GRID.datasets[w.dataset].first_stage.runs.get(w.split, [])),
    output:
        RUN,
    log:
        f"{LOGS}/retrieve/{{dataset}}.{{split}}.log",
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        folder=lambda w, input: folder_of(input.corpus),
        settings=lambda w: as_json(GRID.datasets[w.dataset].retrieve_settings(w.split)),
        embeddings=lambda w, input: repeated_option("--embeddings", input.embeddings),
        code=CODE["retrieve"],
    shell:
        "lwr retrieve --collection {params.folder:q} --split {wildcards.split} {params.embeddings}"
        " --settings {params.settings:q} --out {output:q} 2>&1 | tee {log:q}"


rule mine:
    input:
        corpus=CORPUS,
        queries=QUERIES,
        qrels=expand(QRELS, split="train", allow_missing=True),
        run=expand(RUN, split="train", allow_missing=True),
        teacher=mining_teacher,
    output:
        GROUPS,
    log:
        f"{LOGS}/mine/{{dataset}}.log",
    wildcard_constraints:
        dataset=any_of(COLLECTED),
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        folder=lambda w, input: folder_of(input.corpus),
        settings=lambda w: as_json(GRID.datasets[w.dataset].mining),
        teacher=lambda w, input: repeated_option("--teacher-run", input.teacher),
        code=CODE["mine"],
    shell:
        "lwr mine --collection {params.folder:q} --run {input.run:q} {params.teacher}"
        " --settings {params.settings:q} --out {output:q} 2>&1 | tee {log:q}"


rule groups:
    input:
        lambda w: local([str(file) for file in GRID.datasets[w.dataset].source.files()]),
    output:
        GROUPS,
    log:
        f"{LOGS}/groups/{{dataset}}.log",
    wildcard_constraints:
        dataset=any_of(ADOPTED),
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        source=lambda w: as_json(GRID.datasets[w.dataset].source),
        code=CODE["groups"],
    shell:
        "lwr groups --source {params.source:q} --out {output:q} 2>&1 | tee {log:q}"
