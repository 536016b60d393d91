# Scores of teachers, once per data set and teacher: a checkpoint, or another cell of the grid.


rule teach:
    input:
        corpus=CORPUS,
        queries=QUERIES,
        qrels=expand(QRELS, split="train", allow_missing=True),
        run=expand(RUN, split="train", allow_missing=True),
        cell=teaching_cell,
    output:
        TEACHER_RUN if SHARDS == 1 else temp(TEACHER_SHARD),
    log:
        f"{LOGS}/teach/{{dataset}}/{{teacher}}{'' if SHARDS == 1 else '.{shard}'}.log",
    threads: threads_each(len(GRID.taught()) * SHARDS)
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=480,
    params:
        folder=lambda w, input: folder_of(input.corpus),
        teacher=lambda w: as_json(GRID.teachers[w.teacher]),
        model=lambda w, input: repeated_option("--model", input.cell[:1]),
        fusion=lambda w, input: repeated_option("--fusion", input.cell[1:]),
        files=teacher_files,
        shard="1/1" if SHARDS == 1 else f"{{shard}}/{SHARDS}",
        label="teach {dataset} {teacher}",
        code=CODE["teach"],
    shell:
        "lwr launch --gpus {resources.gpu} --"
        " teach --teacher {params.teacher:q} {params.model} {params.fusion} --name {wildcards.teacher:q} --collection {params.folder:q}"
        " --run {input.run:q} --shard {params.shard} --out {output:q} --label {params.label:q} 2>&1 | tee {log:q}"


if SHARDS > 1:

    use rule gather as gather_teacher with:
        input:
            expand(TEACHER_SHARD, shard=range(1, SHARDS + 1), allow_missing=True),
        output:
            TEACHER_RUN,
        log:
            f"{LOGS}/gather/teachers/{{dataset}}/{{teacher}}.log",
