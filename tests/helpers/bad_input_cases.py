"""The table of bad input: what is wrong, the command that meets it, and words of the message that mends it."""

from __future__ import annotations

from pathlib import Path

import torch
from bad_input_world import (
    ADOPT_RUN,
    BASE,
    CASCADE,
    CHECK,
    COLLECT,
    EVALUATE,
    EXPORT,
    GATHER,
    GROUPS,
    MINE,
    RETRIEVE,
    SCORE,
    TRAIN,
    TRAINING,
    Case,
    all_of,
    appended,
    changed,
    cut,
    encoded,
    line,
    nothing,
    pickled,
    removed,
    replaced,
    tabled,
    weights,
    wrote,
    zipped,
)

from lwr.formats import parquet

QUERIES, CORPUS, QRELS = "data/queries.jsonl", "data/corpus.jsonl", "data/qrels/test.tsv"
HEADER = "query-id\tcorpus-id\tscore\n"
ZIPPED = ["groups", "--source", "{kind: flag_embedding, path: groups.jsonl.gz}", "--out", "out.jsonl"]


def with_settings(command: list[str], option: str, text: str) -> list[str]:
    at = command.index(option)
    return [*command[: at + 1], text, *command[at + 2 :]]


def passage(text: str) -> str:
    """A line of corpus.jsonl; text: as JSON has it."""
    return f'{{"_id": "d0", "title": "", "text": "{text}"}}'


COLLECTIONS = [
    Case("broken JSON line", COLLECT, line(QUERIES, 2, '{"_id": "q1'), (f"{QUERIES}:2", "not JSON", "one object per line")),
    Case("JSON nested 100,000 deep", COLLECT, line(QUERIES, 2, "[" * 100_000), (f"{QUERIES}:2", "not JSON")),
    Case("line that is a list", COLLECT, line(CORPUS, 3, "[1, 2]"), (f"{CORPUS}:3", "not a JSON object")),
    Case("NaN in a JSON line", COLLECT, line(CORPUS, 1, '{"_id": "d0", "text": "t", "x": NaN}'), (f"{CORPUS}:1", "NaN")),
    Case("text in Latin-1", COLLECT, encoded(CORPUS, "latin-1"), (f"{CORPUS}:1", "not UTF-8", "save the file as UTF-8")),
    Case("text in UTF-16", COLLECT, encoded(CORPUS, "utf-16"), (f"{CORPUS}:1", "not UTF-8")),
    Case("byte order mark at the start", COLLECT, encoded(CORPUS, "utf-8-sig")),
    Case("byte order mark inside", COLLECT, line(CORPUS, 2, "\ufeff" + passage("x")), (f"{CORPUS}:2", "remove it")),
    Case("empty queries.jsonl", COLLECT, wrote(QUERIES, ""), ("data/qrels/train.tsv:2", "'q0' is not in queries.jsonl")),
    Case("empty corpus.jsonl", COLLECT, wrote(CORPUS, ""), ("are not in its corpus", "qrels/train.tsv")),
    Case("empty qrels", COLLECT, wrote(QRELS, ""), (f"{QRELS}:1", "no header")),
    Case("qrels with a header alone", COLLECT, wrote(QRELS, HEADER), ("none judged in it", "test_from_train")),
    Case("no qrels of dev", COLLECT, removed("data/qrels/dev.tsv"), ("no qrels/dev.tsv", "dev_from_train")),
    Case("no corpus", COLLECT, removed(CORPUS), (CORPUS, "no such file")),
    Case("blank line", COLLECT, line(QUERIES, 3, "  "), (f"{QUERIES}:3", "blank line; remove it")),
    Case("missing field", COLLECT, line(CORPUS, 4, '{"_id": "d3"}'), (f"{CORPUS}:4", "'text' is missing; add it")),
    Case("text that is a number", COLLECT, line(CORPUS, 4, '{"_id": "d3", "text": 7}'), (f"{CORPUS}:4", "'text' is 7", "a string")),
    Case("id that is a number", COLLECT, line(QUERIES, 1, '{"_id": 0, "text": "t"}'), (f"{QUERIES}:1", "'_id' is 0", "a string")),
    Case("title that is a list", COLLECT, replaced(CORPUS, '"title": ""', '"title": ["t"]'), (f"{CORPUS}:1", "'title'")),
    Case("passage id twice", COLLECT, replaced(CORPUS, '"d11"', '"d0"'), ("corpus.jsonl:12", "'d0' is duplicated")),
    Case("query id twice", COLLECT, replaced(QUERIES, '"q7"', '"q0"'), (f"{QUERIES}:8", "'q0' is duplicated")),
    Case("id with a space", COLLECT, replaced(CORPUS, '"d11"', '"d 11"'), (f"{CORPUS}:12", "'d 11'", "rename it")),
    Case("id with a NUL", COLLECT, replaced(CORPUS, '"d11"', r'"d\u0000"'), (f"{CORPUS}:12", "rename it")),
    Case("id with a byte order mark", COLLECT, replaced(CORPUS, '"d11"', r'"\ufeffd"'), (f"{CORPUS}:12", "rename it")),
    Case("half a surrogate pair", COLLECT, line(CORPUS, 1, passage(r"\ud83d")), (f"{CORPUS}:1", "surrogate")),
    Case("query without text", COLLECT, replaced(QUERIES, "decode the number 9", " \\t"), (f"{QUERIES}:4", "'q3' has no text")),
    Case("passage without text", COLLECT, line(CORPUS, 1, passage(""))),
    Case("passage of whitespace", COLLECT, line(CORPUS, 1, passage(r" \n\t "))),
    Case("text of 1 MB", COLLECT, line(CORPUS, 1, passage("long " * 200_000))),
    Case("control characters and NUL in a text", COLLECT, line(CORPUS, 1, passage(r"a\u0000b\u0007c\u001b[31m"))),
    Case("text from right to left, and emoji", COLLECT, line(CORPUS, 1, passage("שלום עולם 👩‍👩‍👧 مرحبا"))),
    Case("line ends of Windows", COLLECT, replaced(CORPUS, "\n", "\r\n")),
    Case("qrels: unknown query", COLLECT, appended(QRELS, "q99\td1\t1\n"), (f"{QRELS}:4", "'q99' is not in queries.jsonl")),
    Case("qrels: unknown passage", COLLECT, appended(QRELS, "q7\td99\t1\n"), ("'d99'", "qrels/test.tsv")),
    Case("qrels: two columns", COLLECT, appended(QRELS, "q7\td1\n"), (f"{QRELS}:4", "2 columns")),
    Case("qrels: TREC's four columns", COLLECT, wrote(QRELS, "q6 0 d6 1\n"), (f"{QRELS}:1", "no header")),
    Case("qrels: header of others", COLLECT, replaced(QRELS, "query-id", "qid"), (f"{QRELS}:1", "the first line must be")),
    Case("qrels: pair twice", COLLECT, appended(QRELS, "q7\td7\t1\n"), (f"{QRELS}:4", "judged twice")),
    Case("qrels: grade 0.5", COLLECT, appended(QRELS, "q7\td1\t0.5\n"), (f"{QRELS}:4", "'0.5' is not a whole number")),
    Case("qrels: negative grade", COLLECT, appended(QRELS, "q7\td1\t-2\n")),
    Case("qrels: grade of ten digits", COLLECT, appended(QRELS, "q7\td1\t2147483647\n"), (f"{QRELS}:4", "scale it")),
    Case("qrels: query of two splits", COLLECT, appended(QRELS, "q0\td0\t1\n"), ("'q0'", "train and test", "remove it")),
    Case("no passage with words", RETRIEVE, wrote(CORPUS, passage("!") + "\n"), ("no words",)),
    Case("collection that is not there", [*RETRIEVE[:2], "nowhere", *RETRIEVE[3:]], nothing, ("nowhere",), code=2),
]  # fmt: skip

RUNS = [
    Case("run: five columns", ADOPT_RUN, line("test.trec", 2, "q6 d7 2 8.0 tag"), ("test.trec:2", "5 columns", "query Q0")),
    Case("run: score NaN", ADOPT_RUN, line("test.trec", 2, "q6 Q0 d7 2 nan tag"), ("test.trec:2", "'nan' is not finite")),
    Case("run: score inf", ADOPT_RUN, line("test.trec", 2, "q6 Q0 d7 2 -inf tag"), ("test.trec:2", "'-inf' is not finite")),
    Case("run: score that float32 cannot hold", ADOPT_RUN, line("test.trec", 1, "q6 Q0 d6 1 1e300 t"), ("test.trec:1", "1e300")),
    Case("run: score in words", ADOPT_RUN, line("test.trec", 2, "q6 Q0 d7 2 high tag"), ("test.trec:2", "'high'")),
    Case("run: passage twice", ADOPT_RUN, line("test.trec", 2, "q6 Q0 d6 2 8.0 tag"), ("test.trec:2", "'d6' is duplicated")),
    Case("run: passage that the corpus lacks", ADOPT_RUN, line("test.trec", 2, "q6 Q0 d99 2 8.0 t"), ("test.trec", "'d99'")),
    Case("run: of queries of no split", ADOPT_RUN, wrote("test.trec", "x Q0 d1 1 1.0 t\n"), ("test.trec", "none of the 2 queries")),
    Case("run: empty", SCORE, wrote("test.trec", ""), ("test.trec", "no candidate")),
    Case("run: unknown query", SCORE, appended("test.trec", "q99 Q0 d1 1 1.0 t\n"), ("test.trec", "'q99'", "queries.jsonl")),
    Case("run: unknown passage", SCORE, line("test.trec", 2, "q6 Q0 d99 2 8.0 t"), ("'d99'", "retrieve again")),
    Case("run: a binary file", SCORE, wrote("test.trec", bytes(range(256))), ("test.trec:1", "1 columns")),
]  # fmt: skip

TRAINING_GROUPS = [
    Case("run of another split", [*MINE[:4], "test.trec", *MINE[5:]], nothing, ("test.trec", "not judged for train")),
    Case("train queries without a positive", MINE, replaced("data/qrels/train.tsv", "\t1", "\t0"), ("train.trec", "no group can be made")),
    Case("corpus smaller than a group", [*MINE[:-1], "{negatives: 40}"], nothing, ("corpus of 12", "lower mining.negatives")),
    Case("groups: no negatives", GROUPS, line("groups.jsonl", 2, '{"query": "q", "pos": ["p"], "neg": []}'), ("groups.jsonl:2", "'neg'")),
    Case("groups: negative that is null", GROUPS, line("groups.jsonl", 2, '{"query": "q", "pos": ["p"], "neg": [null]}'), ("groups.jsonl:2", "'neg'")),
    Case("groups: no query", GROUPS, line("groups.jsonl", 2, '{"query": " ", "pos": ["p"], "neg": ["n"]}'), ("groups.jsonl:2", "'query' has no text")),
    Case("groups: positive that is a text", GROUPS, line("groups.jsonl", 2, '{"query": "q", "pos": "p", "neg": ["n"]}'), ("groups.jsonl:2", "'pos'", "a list")),
    Case("groups: scores for some texts", GROUPS, line("groups.jsonl", 1, '{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1], "neg_scores": []}'), ("groups.jsonl:1", "'neg_scores'")),
    Case("groups: score that float32 cannot hold", GROUPS, line("groups.jsonl", 1, '{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1e300], "neg_scores": [0]}'), ("groups.jsonl:1", "'pos_scores'", "float32")),
    Case("groups: scores on some lines", GROUPS, line("groups.jsonl", 2, '{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1], "neg_scores": [0]}'), ("groups.jsonl:2", "unlike the lines before")),
    Case("groups: empty file", GROUPS, wrote("groups.jsonl", ""), ("groups.jsonl", "no group in it")),
    Case("groups: archive", ZIPPED, zipped("groups.jsonl")),
    Case("groups: archive cut short", ZIPPED, zipped("groups.jsonl", 0.6), ("groups.jsonl.gz:", "broken gzip archive")),
    Case("groups: no archive, by name alone", ZIPPED, wrote("groups.jsonl.gz", "{}"), ("groups.jsonl.gz:1", "broken gzip archive")),
    Case("groups: texts of 1 MB", TRAIN, line("groups.jsonl", 1, '{"query": "' + "long " * 200_000 + '", "pos": ["' + "very " * 200_000 + '"], "neg": ["n", "m"]}')),
    Case("groups: broken line", TRAIN, line("groups.jsonl", 3, "{"), ("groups.jsonl:3", "not JSON")),
]  # fmt: skip


def another_shape(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t[:, :-1].contiguous() if t.ndim == 2 else t for name, t in tensors.items()}


def not_a_number(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t * torch.nan if "layers.3" in name else t for name, t in tensors.items()}


REMOTE = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, "model_type": "evil"}
CHECKPOINTS = [
    Case("weights cut short", BASE, cut("base/model.safetensors"), ("base/model.safetensors", "damaged", "fetch or train it again")),
    Case("weights of no bytes", BASE, wrote("base/model.safetensors", ""), ("base/model.safetensors", "damaged")),
    Case("pickled weights alone", BASE, pickled("base"), ("./base", "pickled weights are not read")),
    Case("weights of another shape", TRAIN, changed("base/config.json", hidden_size=64), ("base", "another shape", "config.json")),
    Case("weights of another shape than the heads", SCORE, weights("model/heads.safetensors", lambda t: {k: v[:-1].clone() for k, v in t.items()}), ("model/heads.safetensors", "the head of layer 3")),
    Case("weights without a tensor", TRAIN, weights("base/model.safetensors", lambda t: {k: v for k, v in t.items() if "layers.2.mlp" not in k}), ("base", "lacks 3 tensors")),
    Case("no config.json", BASE, removed("base/config.json"), ("./base", "no config.json")),
    Case("broken config.json", BASE, wrote("base/config.json", "{"), ("base/config.json", "not JSON")),
    Case("config.json that is a list", BASE, wrote("base/config.json", "[]"), ("base/config.json", "not a JSON object")),
    Case("config.json without model_type", BASE, changed("base/config.json", model_type=None), ("base/config.json", "'model_type' is missing")),
    Case("config.json without layers", BASE, changed("base/config.json", num_hidden_layers=None), ("base/config.json", "num_hidden_layers")),
    Case("config.json with layers in words", BASE, changed("base/config.json", num_hidden_layers="four"), ("base/config.json", "'four'")),
    Case("checkpoint with code of its own", TRAIN, changed("base/config.json", **REMOTE), ("base/config.json", "code of its own (auto_map)", "never run")),
    Case("unknown architecture", TRAIN, changed("base/config.json", model_type="evil"), ("base/config.json", "evil")),
    Case("no tokenizer", TRAIN, all_of(removed("base/tokenizer.json"), removed("base/tokenizer_config.json")), ("base", "tokenizer")),
    Case("broken tokenizer", TRAIN, wrote("base/tokenizer.json", "{}"), ("base", "tokenizer cannot be read")),
    Case("tokenizer without a pad token", TRAIN, changed("base/tokenizer_config.json", pad_token=None)),
    Case("package that is not installed", with_settings(BASE, "--base", "{model: package:no.such/model}"), nothing, ("no package 'no.such'", "pip install")),
    Case("more layers than there are", with_settings(BASE, "--base", "{model: ./base, num_layers: 9}"), nothing, ("num_layers is 9", "4 layers")),
    Case("start layer too deep", [*TRAIN[:2], "9", *TRAIN[3:]], nothing, ("start_layer is 9", "1..4")),
    Case("heads that the base model lacks", with_settings(TRAIN, "--settings", "{head_init: checkpoint}"), nothing, ("head_init", "use `random`")),
    Case("model without lwr.json", SCORE, removed("model/lwr.json"), ("model", "no lwr.json")),
    Case("broken lwr.json", SCORE, cut("model/lwr.json"), ("model/lwr.json", "not JSON")),
    Case("lwr.json without a field", SCORE, changed("model/lwr.json", start_layer=None), ("model/lwr.json", "'start_layer' is missing")),
    Case("model without heads", SCORE, removed("model/heads.safetensors"), ("heads.safetensors is missing",)),
    Case("model without one of its heads", SCORE, weights("model/heads.safetensors", lambda t: {"layer_4": t["layer_4"]}), ("model/heads.safetensors", "layer_3")),
    Case("heads cut short", SCORE, cut("model/heads.safetensors"), ("model/heads.safetensors", "damaged")),
    Case("model of NaN", SCORE, weights("model/model.safetensors", not_a_number), ("output is not finite", "damaged weights")),
    Case("head of NaN", SCORE, weights("model/heads.safetensors", lambda t: {k: v * torch.nan for k, v in t.items()}), ("'q6'", "'d6'", "layer 3", "not finite")),
    Case("export of a layer without a head", [*EXPORT[:4], "1", *EXPORT[5:]], nothing, ("layer", "3..4")),
]  # fmt: skip

SETTINGS = [
    Case("unknown key", CHECK, replaced("grid.yaml", "steps: 4", "stepz: 4"), ("grid.yaml:6", "train.stepz", "did you mean `steps`?")),
    Case("wrong type", CHECK, replaced("grid.yaml", "steps: 4", "steps: many"), ("grid.yaml:6", "train.steps", "'many'")),
    Case("out of range", CHECK, replaced("grid.yaml", "steps: 4", "steps: 0"), ("grid.yaml:6", "train.steps", "greater than or equal to 1")),
    Case("key that is a mapping", CHECK, replaced("grid.yaml", "{steps: 4}", "{ {steps: 4}}"), ("grid.yaml:6", "a key that is no text")),
    Case("key twice", CHECK, appended("grid.yaml", "train: {}\n"), ("grid.yaml:8", "train", "stands twice", "remove one")),
    Case("tab", CHECK, replaced("grid.yaml", "  tiny", "\ttiny"), ("grid.yaml:4", "no YAML")),
    Case("tag that would make an object", CHECK, appended("grid.yaml", "seeds: !!python/object/apply:os.system ['touch owned']\n"), ("grid.yaml:8", "python/object")),
    Case("config in UTF-16", CHECK, encoded("grid.yaml", "utf-16"), ("grid.yaml", "UTF-8")),
    Case("aliases of aliases of aliases", CHECK, wrote("grid.yaml", "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True))), ("grid.yaml: more than 100,000 values",)),
    Case("empty config", CHECK, wrote("grid.yaml", ""), ("grid.yaml:1", "empty")),
    Case("config that is a list", CHECK, wrote("grid.yaml", "- a\n"), ("grid.yaml:1", "no mapping")),
    Case("start layer too deep, in a config", CHECK, replaced("grid.yaml", "[2]", "[2, 9]"), ("grid.yaml:5", "9 is deeper")),
    Case("unknown measure", CHECK, replaced("grid.yaml", "nDCG@10", "NDGC@10"), ("grid.yaml:7", "NDGC@10 is no measure", "nDCG@10")),
    Case("folder that is not there", CHECK, replaced("grid.yaml", "path: data", "path: nowhere"), ("grid.yaml:2", "no such folder")),
    Case("name with a slash", CHECK, replaced("grid.yaml", "tiny:", "../tiny:"), ("grid.yaml:4", "is no name")),
    Case("settings: unknown key", with_settings(TRAIN, "--settings", "{stepz: 4}"), nothing, ("settings: stepz", "steps")),
    Case("settings: key twice", with_settings(TRAIN, "--settings", "{lr: 0.1, lr: 0.2}"), nothing, ("settings:1: lr", "stands twice")),
    Case("settings: tag that would make an object", with_settings(TRAIN, "--settings", "{lr: !!python/name:os.system }"), nothing, ("settings:1", "python/name")),
    Case("settings: list", with_settings(TRAIN, "--settings", "[{lr: 0.1}]"), nothing, ("settings:1", "no mapping")),
    Case("settings: no file of that name", with_settings(TRAIN, "--settings", "lr.yaml"), nothing, ("lr.yaml", "No such file")),
    Case("settings: rate that is NaN", with_settings(TRAIN, "--settings", "{lr: .nan}"), nothing, ("settings: lr", "finite")),
    Case("arm: field missing", with_settings(CASCADE, "--arm", "{dataset: d}"), nothing, ("settings: trained_on: missing",)),
    Case("cell: no YAML", with_settings(EVALUATE, "--cell", "{a: [}"), nothing, ("settings:1", "no YAML")),
    Case("--measures: unknown", with_settings(EVALUATE, "--measures", "nDCG@10,Quality@3"), nothing, ("--measures", "Quality@3 is no measure")),
    Case("shard that is none", [*SCORE, "--shard", "5/2"], nothing, ("5/2", "write K/N")),
]  # fmt: skip

ARTEFACTS = [
    Case("scores cut short", EVALUATE, cut("test.parquet"), ("test.parquet", "damaged", "make it again")),
    Case("scores that are text", EVALUATE, wrote("test.parquet", "query_id,doc_id\n"), ("test.parquet", "damaged")),
    Case("scores without a column", EVALUATE, tabled("test.parquet", lambda t: t.drop(columns="doc_id")), ("test.parquet", "no column 'doc_id'")),
    Case("scores with a NaN", EVALUATE, tabled("test.parquet", lambda t: t.assign(layer_4=t["layer_4"].where(t.index != 2))), ("test.parquet", "layer_4 of row 3 is nan")),
    Case("scores with a candidate twice", EVALUATE, tabled("test.parquet", lambda t: t.assign(doc_id="d6")), ("test.parquet", "duplicated")),
    Case("scores with a NaN, for a cascade", CASCADE, tabled("dev.parquet", lambda t: t.assign(layer_3=float("inf"))), ("dev.parquet", "layer_3 of row 1 is inf")),
    Case("no judged query has a candidate", CASCADE, tabled("dev.parquet", lambda t: t.assign(query_id="other")), ("dev.parquet", "no judged query of dev")),
    Case("nothing judged relevant", CASCADE, replaced("data/qrels/dev.tsv", "\t1", "\t0"), ("data/qrels/dev.tsv", "no query has a relevant passage")),
    Case("broken cascade.json", EVALUATE, cut("cascade.json"), ("cascade.json", "not JSON")),
    Case("cascade.json without a field", EVALUATE, changed("cascade.json", chosen=None), ("cascade.json", "'chosen' is missing")),
    Case("cascade.json with a broken schedule", EVALUATE, changed("cascade.json", chosen="3:2:1"), ("3:2:1", "layer:survivors")),
    Case("cascade.json of another model", EVALUATE, changed("cascade.json", chosen="1:2 4"), ("cascade.json", "layer 1")),
    Case("shard missing at the end", [*GATHER[:2], *GATHER[3:]], nothing, ("shard1.parquet", "1/2", "give all shards")),
    Case("shards in another order", ["gather", "shard2.parquet", "shard1.parquet", *GATHER[3:]], nothing, ("shard2.parquet", "2/2", "in order")),
    Case("shard that is not there", ["gather", "shard1.parquet", "shard3.parquet", *GATHER[3:]], nothing, ("shard3.parquet",), code=2),
    Case("shard cut short", GATHER, cut("shard2.parquet"), ("shard2.parquet", "damaged")),
    Case("shard of another run", GATHER, lambda: _rewrite("shard2.parquet", run="0" * 64), ("shard2.parquet", "shard1.parquet's", "score it again")),
]  # fmt: skip


def _rewrite(name: str, **inputs: str) -> None:
    path = Path(name)
    parquet.write(path, parquet.read(path, []), parquet.read_inputs(path) | inputs)


OUTPUTS = [
    Case("file where a folder is to be", with_settings(TRAIN, "--out", "out.json"), nothing, ("out.json", "is a file"), code=2),
    Case("folder where a file is to be", with_settings(SCORE, "--out", "out"), nothing, ("out", "is a directory"), code=2),
    Case("folder inside a file", with_settings(SCORE, "--out", "out.json/scores.parquet"), nothing, ("out.json",)),
    Case("output with spaces and quotes", with_settings(SCORE, "--out", "it's \"here\"/$(x) y.parquet"), nothing),
]  # fmt: skip

FAULTS = [
    Case("loss that is not finite", with_settings(TRAIN, "--settings", f"{TRAINING[:-1]}, exit_weights: {{3: 1.0e+300}}}}"), nothing, ("loss of exits [3, 4]", "after step 0", "groups.jsonl:")),
    Case("gradient that is not finite", with_settings(TRAIN, "--settings", "{steps: 9, lr: 1.0e+30, warmup: 0, group_size: 3, groups_per_batch: 2, query_max_len: 8, passage_max_len: 40}"), nothing, ("gradient of the backbone", "after step 1", "groups.jsonl:", "lower lr")),
    Case("base model of NaN", TRAIN, weights("base/model.safetensors", not_a_number), ("output is not finite", "damaged weights")),
]  # fmt: skip

TABLE = {
    "Collections": COLLECTIONS,
    "Runs": RUNS,
    "Training groups": TRAINING_GROUPS,
    "Checkpoints and models": CHECKPOINTS,
    "Configs and settings": SETTINGS,
    "Scores, shards, cascades": ARTEFACTS,
    "Where it is written": OUTPUTS,
    "While it trains": FAULTS,
}
CASES = [case for cases in TABLE.values() for case in cases]
