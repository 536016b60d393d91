# From scores to decisions, for all seeds of an arm together: weights of fused scores and a cascade, both from dev, and
# what every exit and the cascade cost.

if GRID.fusion:

    rule fuse:
        input:
            dev=choosing_scores,
            qrels=choosing_qrels,
        output:
            FUSION,
        log:
            f"{LOGS}/fuse/{ARM}/{{tested}}.log",
        resources:
            mem_mb=8000,
            runtime=60,
        params:
            folder=lambda w, input: collection_of(input.qrels),
            dev=lambda w, input: repeated_option("--dev", input.dev),
            settings=as_json(GRID.fusion.fit_settings()),
            measure=GRID.measures[0],
            arm=lambda w: as_json(ranked_arm(w)),
            label=f"fuse {ARM} {{tested}}",
            code=CODE["fuse"],
        shell:
            "lwr fuse {params.dev} --collection {params.folder:q} --settings {params.settings:q}"
            " --measure {params.measure:q} --arm {params.arm:q} --label {params.label:q} --out {output:q}"
            " 2>&1 | tee {log:q}"


# Scores in int8 are compared with those in float32 before anything is chosen by them.
if IS_INT8:

    rule precision:
        input:
            models=across_seeds(MODEL),
            dev=across_seeds(SCORES, split="dev"),
            corpus=ranked_collection(CORPUS),
            queries=ranked_collection(QUERIES),
            qrels=ranked_collection(QRELS, split="dev"),
        output:
            PRECISION,
        log:
            f"{LOGS}/precision/{ARM}/{{tested}}.log",
        threads: threads_each(len(arm_paths(PRECISION, with_dev_alone=True)))
        resources:
            mem_mb=16000,
            runtime=480,
        params:
            folder=lambda w, input: folder_of(input.corpus),
            models=lambda w, input: repeated_option("--model", input.models),
            dev=lambda w, input: repeated_option("--dev", input.dev),
            settings=as_json(GRID.score.model_copy(update={"shards": 1})),
            margin=GRID.margin,
            measure=GRID.measures[0],
            arm=lambda w: as_json(ranked_arm(w)),
            label=f"precision {ARM} {{tested}}",
            code=CODE["precision"],
        shell:
            "lwr precision {params.models} {params.dev} --collection {params.folder:q}"
            " --settings {params.settings:q} --margin {params.margin} --measure {params.measure:q}"
            " --arm {params.arm:q} --label {params.label:q} --out {output:q} 2>&1 | tee {log:q}"


rule cascade:
    input:
        choosing_precision if IS_INT8 else [],
        model=first_seed(MODEL),
        dev=choosing_scores,
        test=across_seeds(SCORES, split="test"),
        dev_qrels=choosing_qrels,
        test_qrels=ranked_collection(QRELS, split="test"),
        fusion=FUSION_IF_ANY,
    output:
        CASCADE,
    log:
        f"{LOGS}/cascade/{ARM}/{{tested}}.log",
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        folder=lambda w, input: collection_of(input.test_qrels),
        chosen_on=lambda w, input: repeated_option("--dev-collection", choosing_collections(w, input)),
        dev=lambda w, input: repeated_option("--dev", input.dev),
        test=lambda w, input: repeated_option("--test", input.test),
        settings=as_json(GRID.cascade),
        fusion=lambda w, input: repeated_option("--fusion", input.fusion),
        confidence=GRID.fusion.confidence if GRID.fusion else 0.9,
        measure=GRID.measures[0],
        label=f"cascade {ARM} {{tested}}",
        arm=lambda w: as_json(ranked_arm(w)),
        code=CODE["cascade"],
    shell:
        "lwr cascade {params.dev} {params.test} --model {input.model:q} --collection {params.folder:q} {params.chosen_on}"
        " --settings {params.settings:q} {params.fusion} --confidence {params.confidence:q}"
        " --measure {params.measure:q} --arm {params.arm:q} --label {params.label:q} --out {output:q}"
        " 2>&1 | tee {log:q}"


# One job for all arms: they are timed in turns. Many threads, so that on a small machine it runs alone.
rule cost:
    input:
        models=of_ranking_arms(MODEL),
        corpus=ranked_collection(CORPUS),
        queries=ranked_collection(QUERIES),
        scores=of_ranking_arms(SCORES, split="test"),
        cascades=of_ranking_arms(CASCADE),
        fusions=of_ranking_arms(FUSION) if GRID.fusion else [],
    output:
        COST,
    log:
        f"{LOGS}/cost/{{tested}}.log",
    threads: 8
    resources:
        gpu=1,
        mem_mb=lambda w, input, attempt: attempt * (14000 + 2000 * len(input.models)),
        runtime=lambda w, input, attempt: attempt * (60 + 60 * len(input.models)),
    params:
        folder=lambda w, input: folder_of(input.corpus),
        models=lambda w, input: repeated_option("--model", input.models),
        scores=lambda w, input: repeated_option("--scores", input.scores),
        cascades=lambda w, input: repeated_option("--cascade", input.cascades),
        fusions=lambda w, input: repeated_option("--fusion", input.fusions),
        scoring=as_json(GRID.score.model_copy(update={"shards": 1})),
        settings=as_json(GRID.cost),
        label="cost {tested}",
        code=CODE["cost"],
    shell:
        "lwr launch --gpus {resources.gpu} --"
        " cost {params.models} {params.scores} {params.cascades} {params.fusions}"
        " --collection {params.folder:q} --scoring {params.scoring:q} --settings {params.settings:q}"
        " --label {params.label:q} --out {output:q}"
        " 2>&1 | tee {log:q}"
