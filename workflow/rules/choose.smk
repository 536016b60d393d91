# From scores to decisions: a cascade chosen on dev, for all seeds together, and what every exit and it cost.


rule cascade:
    input:
        model=first_seed(MODEL),
        dev=across_seeds(SCORES, split="dev"),
        test=across_seeds(SCORES, split="test"),
        dev_qrels=ranked_collection(QRELS, split="dev"),
        test_qrels=ranked_collection(QRELS, split="test"),
    output:
        CASCADE,
    log:
        f"{LOGS}/cascade/{ARM}/{{tested}}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        folder=lambda w, input: collection_of(input.dev_qrels),
        dev=lambda w, input: repeated_option("--dev", input.dev),
        test=lambda w, input: repeated_option("--test", input.test),
        settings=as_json(GRID.cascade),
        arm=lambda w: as_json(ranked_arm(w)),
        code=CODE["cascade"],
    shell:
        "lwr cascade {params.dev} {params.test} --model {input.model:q} --collection {params.folder:q}"
        " --settings {params.settings:q} --arm {params.arm:q} --out {output:q} 2>&1 | tee {log:q}"


# Many threads, so that on a small machine it runs alone: jobs that measure side by side would measure each other.
rule cost:
    input:
        model=first_seed(MODEL),
        corpus=ranked_collection(CORPUS),
        queries=ranked_collection(QUERIES),
        scores=first_seed(SCORES, split="test"),
        cascade=CASCADE,
    output:
        COST,
    log:
        f"{LOGS}/cost/{ARM}/{{tested}}.log",
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=120,
    params:
        folder=lambda w, input: folder_of(input.corpus),
        scoring=as_json(GRID.score.model_copy(update={"shards": 1})),
        settings=as_json(GRID.cost),
        arm=lambda w: as_json(ranked_arm(w)),
        label=f"cost {ARM} {{tested}}",
        code=CODE["cost"],
    shell:
        "lwr launch --gpus {resources.gpu} --"
        " cost --model {input.model:q} --collection {params.folder:q} --scores {input.scores:q}"
        " --cascade {input.cascade:q} --scoring {params.scoring:q} --settings {params.settings:q}"
        " --arm {params.arm:q} --label {params.label:q} --out {output:q} 2>&1 | tee {log:q}"
