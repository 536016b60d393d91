# What people read: comparisons, tables, the recommendation, figures, and all of it in one page.

EVERY_MEASURE = cell_paths(MEASURES, split="dev") + cell_paths(MEASURES, split="test")


rule compare:
    input:
        EVERY_MEASURE,
    output:
        in_report(COMPARISONS, "Comparisons"),
    log:
        f"{LOGS}/compare.log",
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        folder=lambda w, output: folder_of(output[0]),
        primary=GRID.measures[0],
        margin=GRID.margin,
        code=CODE["compare"],
    shell:
        "lwr compare {input:q} --primary {params.primary:q} --margin {params.margin} --out {params.folder:q}"
        " 2>&1 | tee {log:q}"


rule tables:
    input:
        measures=EVERY_MEASURE,
        costs=cost_paths(),
        cascades=arm_paths(CASCADE),
        calibrations=cell_paths(CALIBRATION),
    output:
        in_report(LAYERS_TABLE, "Quality by layer"),
        in_report(OTHER_TABLES, "Cost, cascades and calibration"),
    log:
        f"{LOGS}/tables.log",
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        folder=lambda w, output: folder_of(output[0]),
        costs=lambda w, input: repeated_option("--cost", input.costs),
        cascades=lambda w, input: repeated_option("--cascade", input.cascades),
        calibrations=lambda w, input: repeated_option("--calibration", input.calibrations),
        primary=GRID.measures[0],
        code=CODE["tables"],
    shell:
        "lwr tables {input.measures:q} {params.costs} {params.cascades} {params.calibrations}"
        " --primary {params.primary:q} --out {params.folder:q} 2>&1 | tee {log:q}"


rule advise:
    input:
        COMPARISONS,
        LAYERS_TABLE,
        OTHER_TABLES,
        arm_paths(PRECISION, with_dev_alone=True) if IS_INT8 else [],
    output:
        RECOMMENDATION,
    log:
        f"{LOGS}/advise.log",
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        results=lambda w, input: folder_of(folder_of(input[0])),
        code=CODE["advise"],
    shell:
        "lwr advise --results {params.results:q} --out {output:q} 2>&1 | tee {log:q}"


rule figures:
    input:
        COMPARISONS,
        LAYERS_TABLE,
        OTHER_TABLES,
        measures=cell_paths(MEASURES, split="test"),
        models=model_paths(),
        calibrations=cell_paths(CALIBRATION),
    output:
        in_report(FIGURE_FILES, "Figures"),
    log:
        f"{LOGS}/figures.log",
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        tables=lambda w, input: folder_of(input[0]),
        folder=lambda w, output: folder_of(output[0]),
        models=lambda w, input: repeated_option("--training", input.models),
        calibrations=lambda w, input: repeated_option("--calibration", input.calibrations),
        primary=GRID.measures[0],
        style=sha256(REPORTING / "style.css"),
        code=CODE["figures"],
    shell:
        "lwr figures {input.measures:q} --tables {params.tables:q} {params.models} {params.calibrations}"
        " --primary {params.primary:q} --out {params.folder:q} 2>&1 | tee {log:q}"


rule report:
    input:
        COMPARISONS,
        LAYERS_TABLE,
        OTHER_TABLES,
        RECOMMENDATION,
        figures=FIGURE_FILES,
        models=model_paths(),
    output:
        REPORT,
    log:
        f"{LOGS}/report.log",
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        tables=lambda w, input: folder_of(input[0]),
        figures=lambda w, input: folder_of(input.figures[0]),
        title=f"Layerwise rerankers: {', '.join(GRID.datasets)}",
        template=[sha256(REPORTING / name) for name in ("report.html", "style.css", "captions.yaml")],
        code=CODE["report"],
    shell:
        "lwr report {input.models:q} --tables {params.tables:q} --figures {params.figures:q}"
        " --title {params.title:q} --out {output:q} 2>&1 | tee {log:q}"
