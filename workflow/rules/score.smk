# All exits of all candidates in one pass, in one job or in shards.

SHARDS = GRID.score.shards


rule score:
    input:
        model=MODEL,
        corpus=ranked_collection(CORPUS),
        queries=ranked_collection(QUERIES),
        run=ranked_collection(RUN),
    output:
        SCORES if SHARDS == 1 else temp(SHARD),
    log:
        f"{LOGS}/score/{CELL}/{{tested}}/{{split}}{'' if SHARDS == 1 else '.{shard}'}.log",
    threads: threads_each(len(cell_paths(SCORES, split="{split}")) * 2 * SHARDS)  # dev and test
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=480,
    params:
        folder=lambda w, input: folder_of(input.corpus),
        settings=as_json(GRID.score.model_copy(update={"shards": 1})),
        shard="1/1" if SHARDS == 1 else f"{{shard}}/{SHARDS}",
        label=f"score {CELL} {{tested}} {{split}}",
        code=CODE["score"],
    shell:
        "lwr launch --gpus {resources.gpu} --"
        " score --model {input.model:q} --collection {params.folder:q} --split {wildcards.split}"
        " --run {input.run:q} --settings {params.settings:q} --shard {params.shard} --out {output:q}"
        " --label {params.label:q} 2>&1 | tee {log:q}"


if SHARDS > 1:

    rule gather:
        input:
            expand(SHARD, shard=range(1, SHARDS + 1), allow_missing=True),
        output:
            SCORES,
        log:
            f"{LOGS}/gather/{CELL}/{{tested}}/{{split}}.log",
        resources:
            mem_mb=8000,
            runtime=60,
        params:
            code=CODE["gather"],
        shell:
            "lwr gather {input:q} --out {output:q} 2>&1 | tee {log:q}"
