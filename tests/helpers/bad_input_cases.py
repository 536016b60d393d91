"""The cases of bad input: what is wrong, the command that reads it, and key words of its message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import tiny
import torch
from architectures import ARCHITECTURES
from bad_input_world import (
    ADOPT_RUN,
    BASE,
    CALIBRATE,
    CASCADE,
    CHECK,
    COLLECT,
    COST,
    DENSE,
    EMBED,
    EVALUATE,
    EXPORT,
    FUSE,
    GATHER,
    GROUPS,
    MINE,
    PRECISION,
    RERANK,
    RETRIEVE,
    SCORE,
    SERVE,
    TEACH,
    TRAIN,
    TRAINING,
    Case,
    append,
    combine,
    compress,
    edit_table,
    edit_weights,
    encode,
    no_damage,
    pickle_weights,
    remove,
    replace,
    set_keys,
    set_line,
    truncate,
    write,
)
from safetensors import safe_open

from lwr.formats import parquet

QUERIES, CORPUS, QRELS = "data/queries.jsonl", "data/corpus.jsonl", "data/qrels/test.tsv"
CHINESE = "".join(f'{{"_id": "q{i}", "text": "什么是量子计算"}}\n' for i in range(8))
DROP = "{source: {kind: beir, path: data, dangling: drop}}"
HEADER = "query-id\tcorpus-id\tscore\n"
ZIPPED = ["groups", "--source", "{kind: flag_embedding, path: groups.jsonl.gz}", "--out", "out.jsonl"]


SCORED = ["groups", "--source", "{kind: scored, path: groups.jsonl}", "--out", "out.jsonl"]


def with_option(command: list[str], option: str, text: str) -> list[str]:
    at = command.index(option)
    return [*command[: at + 1], text, *command[at + 2 :]]


def passage(text: str) -> str:
    """Return a line of corpus.jsonl; `text` is already escaped for JSON."""
    return f'{{"_id": "d0", "title": "", "text": "{text}"}}'


COLLECTIONS = [
    Case("broken JSON line", COLLECT, set_line(QUERIES, 2, '{"_id": "q1'), (f"{QUERIES}:2", "JSON", "per line")),
    Case("JSON nested 100,000 deep", COLLECT, set_line(QUERIES, 2, "[" * 100_000), (f"{QUERIES}:2", "JSON")),
    Case("line that is a list", COLLECT, set_line(CORPUS, 3, "[1, 2]"), (f"{CORPUS}:3", "JSON object")),
    Case("NaN in a JSON line", COLLECT, set_line(CORPUS, 1, '{"_id": "d0", "text": "t", "x": NaN}'), (f"{CORPUS}:1", "NaN")),
    Case("text in Latin-1", COLLECT, encode(CORPUS, "latin-1"), (f"{CORPUS}:1", "byte 61", "UTF-8")),
    Case("text in UTF-16", COLLECT, encode(CORPUS, "utf-16"), (f"{CORPUS}:1", "UTF-8")),
    Case("byte order mark at the start", COLLECT, encode(CORPUS, "utf-8-sig")),
    Case("byte order mark inside", COLLECT, set_line(CORPUS, 2, "\ufeff" + passage("x")), (f"{CORPUS}:2", "remove it")),
    Case("empty queries.jsonl", COLLECT, write(QUERIES, ""), ("data/qrels/train.tsv:2", "'q0'", "queries.jsonl")),
    Case("empty corpus.jsonl", COLLECT, write(CORPUS, ""), ("'d0'", "qrels/train.tsv")),
    Case("empty qrels", COLLECT, write(QRELS, ""), (f"{QRELS}:1", "header")),
    Case("qrels with a header alone", COLLECT, write(QRELS, HEADER), ("qrels/test.tsv", "test_from_train")),
    Case("no qrels of dev", COLLECT, remove("data/qrels/dev.tsv"), ("qrels/dev.tsv", "dev_from_train")),
    Case("no corpus", COLLECT, remove(CORPUS), (CORPUS,)),
    Case("blank line", COLLECT, set_line(QUERIES, 3, "  "), (f"{QUERIES}:3", "blank")),
    Case("missing field", COLLECT, set_line(CORPUS, 4, '{"_id": "d3"}'), (f"{CORPUS}:4", "'text'", "missing")),
    Case("text that is a number", COLLECT, set_line(CORPUS, 4, '{"_id": "d3", "text": 7}'), (f"{CORPUS}:4", "'text'", "7", "string")),
    Case("id that is a number", COLLECT, set_line(QUERIES, 1, '{"_id": 0, "text": "t"}'), (f"{QUERIES}:1", "'_id'", "0", "string")),
    Case("title that is a list", COLLECT, replace(CORPUS, '"title": ""', '"title": ["t"]'), (f"{CORPUS}:1", "'title'")),
    Case("passage id twice", COLLECT, replace(CORPUS, '"d11"', '"d0"'), ("corpus.jsonl:12", "'d0'")),
    Case("query id twice", COLLECT, replace(QUERIES, '"q7"', '"q0"'), (f"{QUERIES}:8", "'q0'")),
    Case("id with a space", COLLECT, replace(CORPUS, '"d11"', '"d 11"'), (f"{CORPUS}:12", "'d 11'")),
    Case("id with a NUL", COLLECT, replace(CORPUS, '"d11"', r'"d\u0000"'), (f"{CORPUS}:12", "rename")),
    Case("id with a byte order mark", COLLECT, replace(CORPUS, '"d11"', r'"\ufeffd"'), (f"{CORPUS}:12", "rename")),
    Case("half a surrogate pair", COLLECT, set_line(CORPUS, 1, passage(r"\ud83d")), (f"{CORPUS}:1", "surrogate")),
    Case("query without text", COLLECT, replace(QUERIES, "decode the number 9", " \\t"), (f"{QUERIES}:4", "'q3'")),
    Case("passage without text", COLLECT, set_line(CORPUS, 1, passage(""))),
    Case("passage of whitespace", COLLECT, set_line(CORPUS, 1, passage(r" \n\t "))),
    Case("text of 1 MB", COLLECT, set_line(CORPUS, 1, passage("long " * 200_000))),
    Case("control characters and NUL in a text", COLLECT, set_line(CORPUS, 1, passage(r"a\u0000b\u0007c\u001b[31m"))),
    Case("text from right to left, and emoji", COLLECT, set_line(CORPUS, 1, passage("שלום עולם 👩‍👩‍👧 مرحبا"))),
    Case("line ends of Windows", COLLECT, replace(CORPUS, "\n", "\r\n")),
    Case("qrels: unknown query", COLLECT, append(QRELS, "q99\td1\t1\n"), (f"{QRELS}:4", "'q99'", "queries.jsonl")),
    Case("qrels: unknown passage", COLLECT, append(QRELS, "q7\td99\t1\n"), ("'d99'", "qrels/test.tsv")),
    Case("qrels: unknown passage, with dangling: drop", with_option(COLLECT, "--dataset", DROP), append(QRELS, "q7\td99\t1\n")),
    Case("qrels: unknown query, with dangling: drop", with_option(COLLECT, "--dataset", DROP), append(QRELS, "q99\td1\t1\n")),
    Case("corpus.jsonl.gz in place of corpus.jsonl", COLLECT, combine(compress(CORPUS), remove(CORPUS))),
    Case("corpus.jsonl.gz beside corpus.jsonl", COLLECT, compress(CORPUS), (CORPUS, "corpus.jsonl.gz", "remove")),
    Case("qrels/test.tsv.gz in place of qrels/test.tsv", COLLECT, combine(compress(QRELS), remove(QRELS))),
    Case("text that is null", COLLECT, set_line(CORPUS, 4, '{"_id": "d3", "text": null}'), (f"{CORPUS}:4", "'text'", "None", "string")),
    Case("qrels: two columns", COLLECT, append(QRELS, "q7\td1\n"), (f"{QRELS}:4", "2 columns")),
    Case("qrels: TREC's four columns", COLLECT, write(QRELS, "q6 0 d6 1\n"), (f"{QRELS}:1", "header")),
    Case("qrels: header of others", COLLECT, replace(QRELS, "query-id", "qid"), (f"{QRELS}:1", "query-id")),
    Case("qrels: pair twice", COLLECT, append(QRELS, "q7\td7\t1\n"), (f"{QRELS}:4", "'q7'", "'d7'")),
    Case("qrels: grade 0.5", COLLECT, append(QRELS, "q7\td1\t0.5\n"), (f"{QRELS}:4", "'0.5'")),
    Case("qrels: negative grade", COLLECT, append(QRELS, "q7\td1\t-2\n")),
    Case("qrels: no grade above 0", COLLECT, replace(QRELS, "\t1\n", "\t0\n"), ("test", "2 queries", "grade above 0")),
    Case("qrels: grade of ten digits", COLLECT, append(QRELS, "q7\td1\t2147483647\n"), (f"{QRELS}:4", "2147483647")),
    Case("qrels: query of two splits", COLLECT, append(QRELS, "q0\td0\t1\n"), ("'q0'", "train", "test")),
    Case("collection that is not there", [*RETRIEVE[:2], "nowhere", *RETRIEVE[3:]], no_damage, ("nowhere",), code=2),
]  # fmt: skip

EMBEDDINGS = "embeddings/embeddings.json"
FIRST_STAGES = [
    Case("no passage with words", RETRIEVE, write(CORPUS, passage("!") + "\n"), ("words", "test")),
    Case("queries without a word of the corpus", RETRIEVE, write(QUERIES, CHINESE), ("data", "2 queries of test (100%)", "english", "first_stage.language")),
    Case("text without spaces, in its language", with_option(RETRIEVE, "--settings", "{language: chinese}"), combine(write(QUERIES, CHINESE), set_line(CORPUS, 2, passage("量子力学").replace("d0", "d1")))),
    Case("language: auto", with_option(RETRIEVE, "--settings", "{language: auto}"), no_damage, ("language", "auto", "japanese", "yiddish")),
    Case("language that BM25 does not know", with_option(RETRIEVE, "--settings", "{language: germn}"), no_damage, ("germn", "`german`", "kind: dense")),
    Case("key of another first stage", with_option(RETRIEVE, "--settings", "{kind: dense, model: ./base, language: german}"), no_damage, ("language", "no such key", "`model`")),
    Case("dense first stage without a model", with_option(RETRIEVE, "--settings", "{kind: dense}"), no_damage, ("model", "missing")),
    Case("dense first stage without embeddings", DENSE[:-2], no_damage, ("embeddings", "lwr embed")),
    Case("embeddings for BM25", [*RETRIEVE, "--embeddings", "embeddings"], no_damage, ("bm25", "--embeddings")),
    Case("embeddings of another corpus", DENSE, append(CORPUS, '{"_id": "new", "text": "new"}\n'), (EMBEDDINGS, "corpus", "lwr embed")),
    Case("embeddings by another model", with_option(DENSE, "--settings", "{kind: dense, model: ./model}"), no_damage, (EMBEDDINGS, "'./base'", "'./model'")),
    Case("embeddings without a block", DENSE, remove("embeddings/passages/00000.npy"), ("passages/00000.npy", "lwr embed")),
    Case("embeddings cut off", DENSE, truncate("embeddings/queries.npy"), ("queries.npy", "lwr embed")),
    Case("embed: model that is not there", with_option(EMBED, "--settings", "{kind: dense, model: ./nowhere}"), no_damage, ("./nowhere", "config.json")),
    Case("embed: more tokens than positions", with_option(EMBED, "--settings", "{kind: dense, model: ./bert, max_len: 513}"), lambda: tiny.save("bert", Path("bert")), ("max_len", "513", "512")),
    Case("embed: weights cut off", EMBED, truncate("base/model.safetensors"), ("model.safetensors",)),
    Case("dense first stage, in a config: model that is not there", CHECK, replace("grid.yaml", "path: data}", "path: data}, first_stage: {kind: dense, model: ./nowhere}"), ("grid.yaml:2", "datasets.docs.first_stage.model", "./nowhere")),
]  # fmt: skip

RUNS = [
    Case("run: five columns", ADOPT_RUN, set_line("test.trec", 2, "q6 d7 2 8.0 tag"), ("test.trec:2", "5 columns", "Q0")),
    Case("run: score NaN", ADOPT_RUN, set_line("test.trec", 2, "q6 Q0 d7 2 nan tag"), ("test.trec:2", "nan")),
    Case("run: score inf", ADOPT_RUN, set_line("test.trec", 2, "q6 Q0 d7 2 -inf tag"), ("test.trec:2", "-inf")),
    Case("run: score that float32 cannot hold", ADOPT_RUN, set_line("test.trec", 1, "q6 Q0 d6 1 1e300 t"), ("test.trec:1", "1e300")),
    Case("run: score in words", ADOPT_RUN, set_line("test.trec", 2, "q6 Q0 d7 2 high tag"), ("test.trec:2", "'high'")),
    Case("run: passage twice", ADOPT_RUN, set_line("test.trec", 2, "q6 Q0 d6 2 8.0 tag"), ("test.trec:2", "'d6'")),
    Case("run: passage that the corpus lacks", ADOPT_RUN, set_line("test.trec", 2, "q6 Q0 d99 2 8.0 t"), ("test.trec", "'d99'")),
    Case("run: of queries of no split", ADOPT_RUN, write("test.trec", "x Q0 d1 1 1.0 t\n"), ("test.trec", "queries")),
    Case("run: empty", SCORE, write("test.trec", ""), ("test.trec",)),
    Case("run: unknown query", SCORE, append("test.trec", "q99 Q0 d1 1 1.0 t\n"), ("test.trec", "'q99'", "queries.jsonl")),
    Case("run: unknown passage", SCORE, set_line("test.trec", 2, "q6 Q0 d99 2 8.0 t"), ("'d99'", "retrieve")),
    Case("run: a binary file", SCORE, write("test.trec", bytes(range(256))), ("test.trec:1", "1 columns")),
]  # fmt: skip

TRAINING_GROUPS = [
    Case("run of another split", [*MINE[:4], "test.trec", *MINE[5:]], no_damage, ("test.trec", "train")),
    Case("train queries without a positive", MINE, replace("data/qrels/train.tsv", "\t1", "\t0"), ("train.trec", "group")),
    Case("corpus smaller than a group", [*MINE[:-1], "{negatives: 40}"], no_damage, ("12", "mining.negatives")),
    Case("groups: no negatives", GROUPS, set_line("groups.jsonl", 2, '{"query": "q", "pos": ["p"], "neg": []}'), ("groups.jsonl:2", "'neg'")),
    Case("groups: negative that is null", GROUPS, set_line("groups.jsonl", 2, '{"query": "q", "pos": ["p"], "neg": [null]}'), ("groups.jsonl:2", "'neg'")),
    Case("groups: no query", GROUPS, set_line("groups.jsonl", 2, '{"query": " ", "pos": ["p"], "neg": ["n"]}'), ("groups.jsonl:2", "'query'")),
    Case("groups: positive that is a text", GROUPS, set_line("groups.jsonl", 2, '{"query": "q", "pos": "p", "neg": ["n"]}'), ("groups.jsonl:2", "'pos'", "list")),
    Case("groups: scores for some texts", GROUPS, set_line("groups.jsonl", 1, '{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1], "neg_scores": []}'), ("groups.jsonl:1", "'neg_scores'")),
    Case("groups: score that float32 cannot hold", GROUPS, set_line("groups.jsonl", 1, '{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1e300], "neg_scores": [0]}'), ("groups.jsonl:1", "'pos_scores'", "float32")),
    Case("groups: scores on some lines", GROUPS, set_line("groups.jsonl", 2, '{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1], "neg_scores": [0]}'), ("groups.jsonl:2", "scores")),
    Case("groups: empty file", GROUPS, write("groups.jsonl", ""), ("groups.jsonl",)),
    Case("groups: one JSON list", GROUPS, write("groups.jsonl", '[{"query": "q", "pos": ["p"],\n "neg": ["n"]}]')),
    Case("groups: item of a list without negatives", GROUPS, write("groups.jsonl", '[{"query": "q", "pos": ["p"]}]'), ("groups.jsonl", "item 1", "'neg'")),
    Case("groups: list cut short", GROUPS, write("groups.jsonl", '[{"query": "q"'), ("groups.jsonl", "JSON list")),
    Case("groups: folder without such files", with_option(GROUPS, "--source", "{kind: flag_embedding, path: out}"), no_damage, ("out", ".jsonl.gz", "folder")),
    Case("groups: archive", ZIPPED, compress("groups.jsonl")),
    Case("groups: archive cut short", ZIPPED, compress("groups.jsonl", 0.6), ("groups.jsonl.gz:", "gzip")),
    Case("groups: no archive, by name alone", ZIPPED, write("groups.jsonl.gz", "{}"), ("groups.jsonl.gz:1", "gzip")),
    Case("groups: texts of 1 MB", TRAIN, set_line("groups.jsonl", 1, '{"query": "' + "long " * 200_000 + '", "pos": ["' + "very " * 200_000 + '"], "neg": ["n", "m"]}')),
    Case("groups: instruction that the template has no place for", TRAIN, set_line("groups.jsonl", 2, '{"query": "q", "pos": ["p"], "neg": ["n"], "prompt": "Is it?"}'), ("groups.jsonl:2", "'prompt'", "query_prompt")),
    Case("groups: prompt that is a number", GROUPS, set_line("groups.jsonl", 2, '{"query": "q", "pos": ["p"], "neg": ["n"], "passage_prompt": 7}'), ("groups.jsonl:2", "'passage_prompt'", "string")),
    Case("scored rows: no such field", SCORED, no_damage, ("groups.jsonl:1", "'positive'", "columns")),
    Case("scored rows: score in words", SCORED, write("groups.jsonl", '{"query": "q", "passage": "p", "score": "high"}'), ("groups.jsonl:1", "'score'", "number")),
    Case("scored rows: no negative", SCORED, write("groups.jsonl", '{"query": "q", "passage": "p", "score": 1}'), ("groups.jsonl", "positive_from")),
    Case("scored rows: Parquet cut short", with_option(GROUPS, "--source", "{kind: scored, path: test.parquet}"), truncate("test.parquet"), ("test.parquet", "damaged")),
    Case("groups: kind that is none", with_option(GROUPS, "--source", "{kind: skored}"), no_damage, ("kind", "'skored'", "scored_hub")),
    Case("groups: broken line", TRAIN, set_line("groups.jsonl", 3, "{"), ("groups.jsonl:3", "JSON")),
]  # fmt: skip


def another_shape(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t[:, :-1].contiguous() if t.ndim == 2 else t for name, t in tensors.items()}


def not_a_number(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t * torch.nan if "layers.3" in name else t for name, t in tensors.items()}


def use_gpt2() -> None:
    """Replace the base model by one with learnt positions."""
    shutil.rmtree("base")
    (gpt2,) = [each for each in ARCHITECTURES if each.name == "gpt2"]
    gpt2.save(Path("base"))


def split_weights() -> None:
    """Leave an index of two files in place of the weights, but only the first file."""
    weights = Path("base/model.safetensors")
    with safe_open(weights, "numpy") as reader:
        names = list(reader.keys())
    weights.rename("base/model-1.safetensors")
    index = {name: f"model-{1 + name.startswith('model.layers.3')}.safetensors" for name in names}
    Path("base/model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def shrink_vocabulary() -> None:
    """Leave embeddings of the first 300 tokens alone."""
    set_keys("base/config.json", vocab_size=300)()
    names = ("model.embed_tokens.weight", "lm_head.weight")
    edit_weights(
        "base/model.safetensors", lambda t: {k: v[:300].clone() if k in names else v for k, v in t.items()}
    )()


REMOTE = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, "model_type": "evil"}
CHECKPOINTS = [
    Case("weights cut short", BASE, truncate("base/model.safetensors"), ("base/model.safetensors", "damaged")),
    Case("weights of no bytes", BASE, write("base/model.safetensors", ""), ("base/model.safetensors", "damaged")),
    Case("pickled weights alone", BASE, pickle_weights("base"), ("./base", "pickled")),
    Case("weights of another shape", TRAIN, set_keys("base/config.json", hidden_size=64), ("base", "shape", "config.json")),
    Case("weights of another shape than the heads", SCORE, edit_weights("model/heads.safetensors", lambda t: {k: v[:-1].clone() for k, v in t.items()}), ("model/heads.safetensors", "layer 3")),
    Case("weights without a tensor", TRAIN, edit_weights("base/model.safetensors", lambda t: {k: v for k, v in t.items() if "layers.2.mlp" not in k}), ("base", "3 tensors")),
    Case("config.json", BASE, remove("base/config.json"), ("./base", "config.json")),
    Case("broken config.json", BASE, write("base/config.json", "{"), ("base/config.json", "JSON")),
    Case("config.json that is a list", BASE, write("base/config.json", "[]"), ("base/config.json", "JSON object")),
    Case("config.json without model_type", BASE, set_keys("base/config.json", model_type=None), ("base/config.json", "'model_type'")),
    Case("config.json without layers", BASE, set_keys("base/config.json", num_hidden_layers=None), ("base/config.json", "num_hidden_layers")),
    Case("config.json with layers in words", BASE, set_keys("base/config.json", num_hidden_layers="four"), ("base/config.json", "'four'")),
    Case("checkpoint with code of its own", TRAIN, set_keys("base/config.json", **REMOTE), ("base/config.json", "auto_map")),
    Case("unknown architecture", TRAIN, set_keys("base/config.json", model_type="evil"), ("base/config.json", "evil")),
    Case("no tokenizer", TRAIN, combine(remove("base/tokenizer.json"), remove("base/tokenizer_config.json")), ("base", "tokenizer")),
    Case("broken tokenizer", TRAIN, write("base/tokenizer.json", "{}"), ("base", "tokenizer")),
    Case("tokenizer without a pad token", TRAIN, set_keys("base/tokenizer_config.json", pad_token=None)),
    Case("package that is not installed", with_option(BASE, "--base", "{model: package:no.such/model}"), no_damage, ("'no.such'", "pip install")),
    Case("adapter beside the weights", BASE, write("base/adapter_config.json", "{}"), ("base/adapter_config.json", "merge")),
    Case("attention that the model's class lacks", with_option(BASE, "--base", "{model: ./base, attention: flash_attention_2}"), no_damage, ("flash_attention_2", "sdpa")),
    Case("weights without a tensor of the first layers", BASE, edit_weights("base/model.safetensors", lambda t: {k: v for k, v in t.items() if "layers.1.mlp" not in k}), ("base", "3 tensors")),
    Case("weights without a tensor of the last layer", BASE, edit_weights("base/model.safetensors", lambda t: {k: v for k, v in t.items() if "layers.3.mlp" not in k}), ("base", "3 tensors")),
    Case("weights of another shape in the last layer", BASE, edit_weights("base/model.safetensors", lambda t: {k: v[:-1].clone() if "layers.3.mlp.up" in k else v for k, v in t.items()}), ("base", "layers.3.mlp.up_proj.weight", "shape")),
    Case("quantised weights", BASE, set_keys("base/config.json", quantization_config={"quant_method": "awq", "bits": 4}), ("./base", "quantised")),
    Case("export in place of the model", [*EXPORT[:6], "model", *EXPORT[7:]], no_damage, ("model", "another folder")),
    Case("weights without one of their files", BASE, split_weights, ("base/model.safetensors.index.json", "model-2.safetensors")),
    Case("no tokenizer in a base model", BASE, combine(remove("base/tokenizer.json"), remove("base/tokenizer_config.json")), ("base", "tokenizer")),
    Case("tokenizer of another model", BASE, shrink_vocabulary, ("./base", "embeddings", "tokenizer")),
    Case("loss of teacher scores without any", with_option(TRAIN, "--settings", "{loss: margin_mse}"), no_damage, ("groups.jsonl:1", "teacher scores", "margin_mse")),
    Case("more layers than there are", with_option(BASE, "--base", "{model: ./base, num_layers: 9}"), no_damage, ("num_layers", "9", "4")),
    Case("start layer too deep", [*TRAIN[:2], "9", *TRAIN[3:]], no_damage, ("start_layer", "9", "1..4")),
    Case("heads that the base model lacks", with_option(TRAIN, "--settings", "{head_init: checkpoint}"), no_damage, ("head_init", "random")),
    Case("model without the norm of an exit", SCORE, replace("model/lwr.json", '"own_norms": false', '"own_norms": true'), ("heads.safetensors", "norm", "layer 3")),
    Case("base model that is no cross-encoder", with_option(TRAIN, "--settings", "{head_init: cross_encoder}"), no_damage, ("./base", "2 labels", "head_init")),
    Case("score: windows that their overlap fills", with_option(SCORE, "--settings", "{windows: {overlap: 60}}"), no_damage, ("overlap by 60", "passage_max_len")),
    Case("model without lwr.json", SCORE, remove("model/lwr.json"), ("model", "lwr.json")),
    Case("broken lwr.json", SCORE, truncate("model/lwr.json"), ("model/lwr.json", "JSON")),
    Case("lwr.json without a field", SCORE, set_keys("model/lwr.json", start_layer=None), ("model/lwr.json", "'start_layer'")),
    Case("model without heads", SCORE, remove("model/heads.safetensors"), ("heads.safetensors",)),
    Case("model without one of its heads", SCORE, edit_weights("model/heads.safetensors", lambda t: {"layer_4": t["layer_4"]}), ("model/heads.safetensors", "layer_3")),
    Case("heads cut short", SCORE, truncate("model/heads.safetensors"), ("model/heads.safetensors", "damaged")),
    Case("model of NaN", SCORE, edit_weights("model/model.safetensors", not_a_number), ("finite", "damaged")),
    Case("head of NaN", SCORE, edit_weights("model/heads.safetensors", lambda t: {k: v * torch.nan for k, v in t.items()}), ("'q6'", "'d6'", "layer 3", "finite")),
    Case("int8 of an export that is no graph", [*EXPORT, "--precision", "int8"], no_damage, ("--precision int8", "--layout onnx")),
    Case("optimised export that is no ONNX", [*EXPORT, "--optimize", "O2"], no_damage, ("--optimize O2", "--layout onnx")),
    Case("export of a layer without a head", [*EXPORT[:4], "1", *EXPORT[5:]], no_damage, ("layer", "3..4")),
]  # fmt: skip

SETTINGS = [
    Case("unknown key", CHECK, replace("grid.yaml", "steps: 4", "stepz: 4"), ("grid.yaml:6", "train.stepz", "`steps`")),
    Case("wrong type", CHECK, replace("grid.yaml", "steps: 4", "steps: many"), ("grid.yaml:6", "train.steps", "'many'")),
    Case("out of range", CHECK, replace("grid.yaml", "steps: 4", "steps: 0"), ("grid.yaml:6", "train.steps", "0")),
    Case("compression after the last block", CHECK, append("grid.yaml", "score: {widths: [[2, 2], [4, 2]]}\n"), ("grid.yaml:8", "score.widths", "layer 4")),
    Case("choices made on a data set that is not there", CHECK, replace("grid.yaml", "path: data}}", "path: data}, chosen_on: doks}"), ("grid.yaml:2", "datasets.docs.chosen_on", "doks", "docs")),
    Case("choices made on a data set that makes none", CHECK, replace("grid.yaml", "path: data}}", "path: data}, chosen_on: docs}"), ("grid.yaml:2", "datasets.docs.chosen_on", "dev queries")),
    Case("windows that their overlap fills", CHECK, append("grid.yaml", "score: {windows: {overlap: 500}}\n"), ("grid.yaml:8", "score.windows.overlap", "500", "224")),
    Case("key that is a mapping", CHECK, replace("grid.yaml", "{steps: 4}", "{ {steps: 4}}"), ("grid.yaml:6", "key")),
    Case("key twice", CHECK, append("grid.yaml", "train: {}\n"), ("grid.yaml:8", "train", "6 and 8")),
    Case("tab", CHECK, replace("grid.yaml", "  tiny", "\ttiny"), ("grid.yaml:4", "YAML")),
    Case("tag that would make an object", CHECK, append("grid.yaml", "seeds: !!python/object/apply:os.system ['touch owned']\n"), ("grid.yaml:8", "python/object")),
    Case("config in UTF-16", CHECK, encode("grid.yaml", "utf-16"), ("grid.yaml", "UTF-8")),
    Case("aliases of aliases of aliases", CHECK, write("grid.yaml", "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True))), ("grid.yaml", "100,000 values",)),
    Case("empty config", CHECK, write("grid.yaml", ""), ("grid.yaml:1", "empty")),
    Case("config that is a list", CHECK, write("grid.yaml", "- a\n"), ("grid.yaml:1", "mapping")),
    Case("base model that cannot be read, in a config", CHECK, truncate("base/model.safetensors"), ("grid.yaml:4", "base_models.tiny.model", "damaged")),
    Case("adapter beside the weights, in a config", CHECK, write("base/adapter_config.json", "{}"), ("grid.yaml:4", "base_models.tiny.model", "merge")),
    Case("rows longer than the positions", CHECK, combine(use_gpt2, replace("grid.yaml", "{steps: 4}", "{steps: 4, passage_max_len: 700}")), ("grid.yaml:6", "passage_max_len", "700", "512 positions")),
    Case("prompt longer than the rows", CHECK, replace("grid.yaml", "{steps: 4}", "{steps: 4, passage_max_len: 8, query_max_len: 8}"), ("grid.yaml:6", "passage_max_len")),
    Case("start layer too deep, in a config", CHECK, replace("grid.yaml", "[2]", "[2, 9]"), ("grid.yaml:5", "9", "4")),
    Case("loss of teacher scores without any, in a config", CHECK, replace("grid.yaml", "{steps: 4}", "{steps: 4, loss: mse, group_size: 4}"), ("grid.yaml:6", "train.loss", "mse", "teacher_run")),
    Case("unknown measure", CHECK, replace("grid.yaml", "nDCG@10", "NDGC@10"), ("grid.yaml:7", "NDGC@10", "nDCG@10")),
    Case("folder that is not there", CHECK, replace("grid.yaml", "path: data", "path: nowhere"), ("grid.yaml:2", "nowhere")),
    Case("name with a slash", CHECK, replace("grid.yaml", "tiny:", "../tiny:"), ("grid.yaml:4", "'../tiny'")),
    Case("settings: unknown key", with_option(TRAIN, "--settings", "{stepz: 4}"), no_damage, ("settings: stepz", "steps")),
    Case("settings: key twice", with_option(TRAIN, "--settings", "{lr: 0.1, lr: 0.2}"), no_damage, ("settings:1: lr",)),
    Case("settings: tag that would make an object", with_option(TRAIN, "--settings", "{lr: !!python/name:os.system }"), no_damage, ("settings:1", "python/name")),
    Case("settings: list", with_option(TRAIN, "--settings", "[{lr: 0.1}]"), no_damage, ("settings:1", "mapping")),
    Case("settings: no file of that name", with_option(TRAIN, "--settings", "lr.yaml"), no_damage, ("lr.yaml",)),
    Case("settings: rate that is NaN", with_option(TRAIN, "--settings", "{lr: .nan}"), no_damage, ("settings: lr", "finite")),
    Case("arm: field missing", with_option(CASCADE, "--arm", "{dataset: d}"), no_damage, ("settings: trained_on: ", "missing")),
    Case("cell: no YAML", with_option(EVALUATE, "--cell", "{a: [}"), no_damage, ("settings:1", "YAML")),
    Case("--measures: unknown", with_option(EVALUATE, "--measures", "nDCG@10,Quality@3"), no_damage, ("--measures", "Quality@3")),
    Case("shard that is none", [*SCORE, "--shard", "5/2"], no_damage, ("5/2", "K/N")),
]  # fmt: skip

BIG = "teachers: {big: {kind: cell, cell: {base_model: tiny, start_layer: 2, seed: 1}, layer: 4}}\n"
FROM_BIG = replace("grid.yaml", "{steps: 4}", "{steps: 4, distillation: {external: big}}")
TAUGHT = with_option(TRAIN, "--settings", f"{TRAINING[:-1]}, distillation: {{external: big}}}}")
TWO_LABELS = set_keys(
    "base/config.json", architectures=["LlamaForSequenceClassification"], id2label={"0": "no", "1": "yes"}
)

TEACHERS = [
    Case("teacher: layer without a head", with_option(TEACH, "--teacher", "{kind: layerwise, model: model, layer: 1}"), no_damage, ("model", "layer 1", "3..4")),
    Case("teacher: no classifier", with_option(TEACH, "--teacher", "{kind: cross_encoder, model: ./base}"), no_damage, ("base", "LlamaForCausalLM", "another kind")),
    Case("teacher: two labels", with_option(TEACH, "--teacher", "{kind: cross_encoder, model: ./base}"), TWO_LABELS, ("base", "2 labels", "one label")),
    Case("teacher: answer that is no token", with_option(TEACH, "--teacher", "{kind: yes_no, model: ./base, yes_token: ja}"), no_damage, ("base", "'ja'", "yes_token")),
    Case("teacher: cell of a grid", with_option(TEACH, "--teacher", "{kind: cell, cell: {base_model: tiny, start_layer: 2, seed: 1}, layer: 4}"), no_damage, ("kind cell", "--model")),
    Case("teacher: head of NaN", TEACH, edit_weights("model/heads.safetensors", lambda t: {k: v * torch.nan for k, v in t.items()}), ("'q0'", "'d0'", "finite")),
    Case("teacher: run of another split", with_option(TEACH, "--run", "test.trec"), no_damage, ("test.trec", "'q6'", "train")),
    Case("teacher: name without its run", TAUGHT, no_damage, ("distillation.external", "big", "--teacher-run")),
    Case("teacher: groups without ids", [*TAUGHT, "--teacher-run", "train.trec"], no_damage, ("groups.jsonl:1", "'query_id'", "mine")),
    Case("teacher: name that is mined with", [*MINE[:-1], "{teacher: big}"], no_damage, ("big", "--teacher-run")),
    Case("teacher that is not defined, in a config", CHECK, FROM_BIG, ("grid.yaml:6", "train.distillation.external", "big", "`teachers`")),
    Case("cell that teaches itself, in a config", CHECK, combine(FROM_BIG, append("grid.yaml", BIG)), ("grid.yaml:8", "teachers.big.cell", "cycle")),
    Case("layer without a head of a cell, in a config", CHECK, append("grid.yaml", BIG.replace("layer: 4", "layer: 1")), ("grid.yaml:8", "teachers.big.layer", "2..4")),
    Case("cell that is not in the grid, in a config", CHECK, append("grid.yaml", BIG.replace("seed: 1", "seed: 3")), ("grid.yaml:8", "teachers.big.cell.seed", "use 1")),
    Case("two labels, in a config", CHECK, combine(TWO_LABELS, append("grid.yaml", "teachers: {big: {kind: cross_encoder, model: ./base}}\n")), ("grid.yaml:8", "teachers.big.model", "2 labels")),
    Case("answer that is no token, in a config", CHECK, append("grid.yaml", "teachers: {big: {kind: yes_no, model: ./base, no_token: nein}}\n"), ("grid.yaml:8", "teachers.big.no_token", "'nein'")),
]  # fmt: skip

ARTEFACTS = [
    Case("scores cut short", EVALUATE, truncate("test.parquet"), ("test.parquet", "damaged")),
    Case("scores that are text", EVALUATE, write("test.parquet", "query_id,doc_id\n"), ("test.parquet", "damaged")),
    Case("scores without a column", EVALUATE, edit_table("test.parquet", lambda t: t.drop(columns="doc_id")), ("test.parquet", "'doc_id'")),
    Case("scores with a NaN", EVALUATE, edit_table("test.parquet", lambda t: t.assign(layer_4=t["layer_4"].where(t.index != 2))), ("test.parquet", "layer_4", "row 3", "nan")),
    Case("scores of an exit that are text", EVALUATE, edit_table("test.parquet", lambda t: t.assign(layer_4="much")), ("test.parquet", "layer_4", "row 1", "'much'")),
    Case("scores of an exit that are text, for a cascade", CASCADE, edit_table("dev.parquet", lambda t: t.assign(layer_3="0.5")), ("dev.parquet", "layer_3", "row 1", "number")),
    Case("scores with a candidate twice", EVALUATE, edit_table("test.parquet", lambda t: t.assign(doc_id="d6")), ("test.parquet", "candidate")),
    Case("scores with a NaN, for a cascade", CASCADE, edit_table("dev.parquet", lambda t: t.assign(layer_3=float("inf"))), ("dev.parquet", "layer_3", "row 1", "inf")),
    Case("no judged query has a candidate", CASCADE, edit_table("dev.parquet", lambda t: t.assign(query_id=t["query_id"] + "x")), ("dev.parquet", "query", "dev")),
    Case("nothing judged relevant", CASCADE, replace("data/qrels/dev.tsv", "\t1", "\t0"), ("data/qrels/dev.tsv", "relevant")),
    Case("precision that is not compared", with_option(PRECISION, "--settings", "{}"), no_damage, ("--settings", "float32", "int8")),
    Case("precision of fewer models than scores", [*PRECISION, "--dev", "dev.parquet"], no_damage, ("1 x --model", "2 x --dev")),
    Case("scores in int8 without a judged query", PRECISION, edit_table("dev.parquet", lambda t: t.assign(query_id=t["query_id"] + "x")), ("dev.parquet", "judged")),
    Case("broken cascade.json", EVALUATE, truncate("cascade.json"), ("cascade.json", "JSON")),
    Case("cascade.json without a field", EVALUATE, set_keys("cascade.json", chosen=None), ("cascade.json", "'chosen'")),
    Case("cascade.json with a broken schedule", EVALUATE, set_keys("cascade.json", chosen="3:2:1"), ("3:2:1",)),
    Case("cascade.json with a second choice of no schedule", EVALUATE, set_keys("cascade.json", for_fused={"fused": True}), ("cascade.json", "'for_fused'", "'chosen'")),
    Case("cascade.json of another model", EVALUATE, set_keys("cascade.json", chosen="1:2 4"), ("cascade.json", "layer 1")),
    Case("shard missing at the end", [*GATHER[:2], *GATHER[3:]], no_damage, ("shard1.parquet", "1/2", "shards")),
    Case("shards in another order", ["gather", "shard2.parquet", "shard1.parquet", *GATHER[3:]], no_damage, ("shard2.parquet", "2/2", "order")),
    Case("shard that is not there", ["gather", "shard1.parquet", "shard3.parquet", *GATHER[3:]], no_damage, ("shard3.parquet",), code=2),
    Case("shard cut short", GATHER, truncate("shard2.parquet"), ("shard2.parquet", "damaged")),
    Case("shard of another run", GATHER, lambda: _rewrite("shard2.parquet", run="0" * 64), ("shard2.parquet", "shard1.parquet")),
]  # fmt: skip


FUSED_CASCADE = [*CASCADE, "--fusion", "fusion.json"]
FUSED_EVALUATE = [*with_option(EVALUATE, "--cascade", "fused.json"), "--fusion", "fusion.json"]
FUSED_COST = [*COST, "--fusion", "fusion.json"]
OF_LAYER_4 = {key: {"layer_4": {"layer_4": 1.0}} for key in ("with_first_stage", "without_first_stage")}


def without(*columns: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.drop(columns=list(columns))


WEIGHTS = [
    Case("dev scores cut short", FUSE, truncate("dev.parquet"), ("dev.parquet", "damaged")),
    Case("dev scores without the first stage's", FUSE, edit_table("dev.parquet", without("first_stage")), ("dev.parquet", "'first_stage'")),
    Case("dev scores without an exit", FUSE, edit_table("dev.parquet", without("layer_3", "layer_4")), ("dev.parquet", "exit", "query_id")),
    Case("dev scores without an exit", CASCADE, edit_table("dev.parquet", without("layer_3", "layer_4")), ("dev.parquet", "exit", "query_id")),
    Case("dev scores with a candidate twice", FUSE, edit_table("dev.parquet", lambda t: t.assign(doc_id="d4")), ("dev.parquet", "candidate")),
    Case("seeds with other exits", [*FUSE, "--dev", "test.parquet"], edit_table("test.parquet", without("layer_3")), ("test.parquet", "exits", "dev.parquet")),
    Case("nothing judged relevant", FUSE, replace("data/qrels/dev.tsv", "\t1", "\t0"), ("data/qrels/dev.tsv", "relevant")),
    Case("settings: one fold", with_option(FUSE, "--settings", "{folds: 1}"), no_damage, ("settings: folds", "2")),
    Case("--measure without a cutoff", [*FUSE, "--measure", "Judged"], no_damage, ("--measure", "Judged")),
    Case("test scores cut short", CALIBRATE, truncate("test.parquet"), ("test.parquet", "damaged")),
    Case("test scores of fewer exits", CALIBRATE, edit_table("test.parquet", without("layer_3")), ("test.parquet", "layer_3", "dev.parquet")),
    Case("scores of other queries than are judged", with_option(CALIBRATE, "--test", "dev.parquet"), no_damage, ("dev.parquet", "data/qrels/test.tsv", "judged")),
    Case("nothing judged relevant", CALIBRATE, replace("data/qrels/dev.tsv", "\t1", "\t0")),
    Case("cell without a seed", with_option(CALIBRATE, "--cell", "{dataset: d}"), no_damage, ("settings", "seed", "missing")),
    Case("weights of other exits", [*CALIBRATE, "--fusion", "fusion.json"], set_keys("fusion.json", **OF_LAYER_4, out_of_fold=[OF_LAYER_4]), ("fusion.json", "of layer_4,", "of layer_3, layer_4")),
    Case("--precision above 1", ["advise", "--precision", "1.5"], no_damage, ("--precision", "1.5", "0.9")),
    Case("calibration of an exit without its line", EXPORT, write("model/calibration.json", '{"exits": {"layer_3": {}}}'), ("calibration.json", "layer_3", "lwr calibrate")),
    Case("calibration with a slope below 0", EXPORT, write("model/calibration.json", '{"exits": {"layer_3": {"logistic": {"slope": -1, "intercept": 0}}}}'), ("calibration.json", "layer_3", "slope")),
    Case("weights cut short", FUSED_CASCADE, truncate("fusion.json"), ("fusion.json", "JSON")),
    Case("weights of other exits", FUSED_CASCADE, set_keys("fusion.json", **OF_LAYER_4, out_of_fold=[OF_LAYER_4]), ("fusion.json", "of layer_4,", "of layer_3, layer_4")),
    Case("weight of an exit that is not read yet", FUSED_CASCADE, set_keys("fusion.json", with_first_stage={"layer_3": {"layer_4": 1.0}}), ("fusion.json", "layer_3", "up to")),
    Case("weight that is text", FUSED_CASCADE, set_keys("fusion.json", with_first_stage={"layer_3": {"layer_3": "much"}}), ("fusion.json", "layer_3", "finite")),
    Case("weights of no fold", FUSED_CASCADE, set_keys("fusion.json", out_of_fold=[]), ("fusion.json", "out_of_fold")),
    Case("cascade.json without the row of its choice", FUSED_COST, set_keys("fused.json", schedules=[]), ("fused.json", "'schedules'", "0:3 4")),
    Case("fused cascade without weights", FUSED_EVALUATE[:-2], no_damage, ("fused.json", "0:3 4", "--fusion")),
    Case("fused cascade without weights", COST, no_damage, ("fused.json", "0:3 4", "--fusion")),
    Case("cascade whose compression was not scored", with_option(EVALUATE, "--cascade", "fused.json"), set_keys("fused.json", chosen="3/2 4", fused=False), ("layer_4_compressed_3_by_2", "score.widths")),
    Case("fused cascade with other weights", FUSED_EVALUATE, set_keys("fusion.json", penalty=1.0), ("fused.json", "fusion.json", "lwr cascade")),
    Case("fused cascade with other weights", FUSED_COST, set_keys("fusion.json", penalty=1.0), ("fused.json", "fusion.json", "lwr cascade")),
    Case("weights of other exits", [*EVALUATE, "--fusion", "fusion.json"], set_keys("fusion.json", **OF_LAYER_4), ("fusion.json", "of layer_4,", "of layer_3, layer_4")),
    Case("weights of other exits", FUSED_COST, combine(set_keys("fused.json", inputs=None), set_keys("fusion.json", **OF_LAYER_4)), ("fusion.json", "[4]", "3..4")),
    Case("weights for one of two arms", [*FUSED_COST, "--model", "model", "--scores", "test.parquet", "--cascade", "fused.json"], no_damage, ("--fusion", "2 arms")),
]  # fmt: skip


def _rewrite(name: str, **inputs: str) -> None:
    path = Path(name)
    parquet.write(path, parquet.read(path, []), parquet.read_inputs(path) | inputs)


USE = [
    Case("export of rows without space for a pair", EXPORT, combine(replace("model/lwr.json", '"query_max_len": 8', '"query_max_len": 1'), replace("model/lwr.json", '"passage_max_len": 40', '"passage_max_len": 4')), ("rows of 4 tokens", "passage_max_len")),
    Case("query without text", with_option(RERANK, "--query", " "), no_damage, ("--query", "text")),
    Case("no passage", RERANK, write("passages.txt", ""), ("passages.txt", "passages")),
    Case("blank passage", RERANK, append("passages.txt", "\n"), ("passages.txt:3", "blank")),
    Case("passages in UTF-16", RERANK, encode("passages.txt", "utf-16"), ("passages.txt", "UTF-8")),
    Case("fused scores of a compression without weights", [*with_option(RERANK, "--layer", "4"), "--compress", "3/2", "--fused", "--fusion", "fusion.json"], no_damage, ("layer_4_compressed_3_by_2", "score.widths")),
    Case("instruction that the template has no place for", [*RERANK, "--instruction", "Is it?"], no_damage, ("instruction", "'Is it?'", "{instruction}", "leave it out")),
    Case("instruction beside groups", "rerank --model model --groups groups.jsonl --instruction why --out out.trec".split(), no_damage, ("--instruction", "--groups", "prompt")),
    Case("rerank: windows that their overlap fills", [*RERANK, "--windows", "{overlap: 60}"], no_damage, ("overlap by 60", "passage_max_len")),
    Case("windows that are pooled otherwise", [*RERANK, "--windows", "{pool: sum}"], no_damage, ("pool", "max", "mean")),
    Case("layer without a head", with_option(RERANK, "--layer", "1"), no_damage, ("[1]", "3..4")),
    Case("budget of no time", [*SERVE, "--budget-ms", "0"], no_damage, ("--budget-ms", "0.001"), code=2),
    Case("budget without an end", [*SERVE, "--budget-ms", "inf"], no_damage, ("--budget-ms inf", "milliseconds")),
    Case("budget beside a layer", [*SERVE, "--budget-ms", "50", "--layer", "3"], no_damage, ("--budget-ms 50", "--layer")),
    Case("serve: windows that their overlap fills", [*SERVE, "--windows", "{overlap: 60}"], no_damage, ("overlap by 60", "passage_max_len")),
    Case("serve: layer without a head", [*SERVE, "--layer", "1"], no_damage, ("[1]", "3..4")),
    Case("serve: key that is not set", [*SERVE, "--api-key-env", "LWR_NO_SUCH_KEY"], no_damage, ("LWR_NO_SUCH_KEY", "not set")),
    Case("serve: calibration cut short", SERVE, write("model/calibration.json", "{"), ("calibration.json", "JSON")),
]  # fmt: skip

OUTPUTS = [
    Case("file where a folder is to be", with_option(TRAIN, "--out", "out.json"), no_damage, ("out.json", "--out"), code=2),
    Case("folder where a file is to be", with_option(SCORE, "--out", "out"), no_damage, ("out", "--out"), code=2),
    Case("folder inside a file", with_option(SCORE, "--out", "out.json/scores.parquet"), no_damage, ("out.json",)),
    Case("output with spaces and quotes", with_option(SCORE, "--out", "it's \"here\"/$(x) y.parquet"), no_damage),
]  # fmt: skip

FAULTS = [
    Case("training in float16 without a GPU", with_option(TRAIN, "--settings", "{precision: float16}"), no_damage, ("float16", "GPU", "bfloat16")),
    Case("training in int8", with_option(TRAIN, "--settings", "{precision: int8}"), no_damage, ("precision", "float32", "bfloat16")),
    Case("adapter on a base model in unknown bits", with_option(TRAIN, "--settings", "{lora: {base_precision: fp4}}"), no_damage, ("lora.base_precision", "int8", "nf4")),
    Case("sharded training in one process", with_option(TRAIN, "--settings", "{parallel: fsdp}"), no_damage, ("parallel: fsdp", "--processes 2", "ddp")),
    Case("sharded training in float16", with_option(TRAIN, "--settings", "{parallel: fsdp, precision: float16}"), no_damage, ("parallel", "fsdp", "float32")),
    Case("sharded training of an adapter", with_option(TRAIN, "--settings", "{parallel: fsdp, lora: {}}"), no_damage, ("parallel", "fsdp", "lora: null")),
    Case("loss that is not finite", with_option(TRAIN, "--settings", f"{TRAINING[:-1]}, exit_weights: {{3: 1.0e+300}}}}"), no_damage, ("loss", "[3, 4]", "step 0", "groups.jsonl:")),
    Case("gradient that is not finite", with_option(TRAIN, "--settings", "{steps: 9, lr: 1.0e+30, warmup: 0, group_size: 3, groups_per_batch: 2, query_max_len: 8, passage_max_len: 40}"), no_damage, ("gradient", "backbone", "step 1", "groups.jsonl:", "lr")),
    Case("base model of NaN", TRAIN, edit_weights("base/model.safetensors", not_a_number), ("finite", "damaged")),
]  # fmt: skip

TABLE = {
    "Collections": COLLECTIONS,
    "First stages": FIRST_STAGES,
    "Runs": RUNS,
    "Training groups": TRAINING_GROUPS,
    "Checkpoints and models": CHECKPOINTS,
    "Teachers": TEACHERS,
    "Configs and settings": SETTINGS,
    "Scores, shards, cascades": ARTEFACTS,
    "Weights of fused scores": WEIGHTS,
    "Export and rerank": USE,
    "Where it is written": OUTPUTS,
    "While it trains": FAULTS,
}
CASES = [case for cases in TABLE.values() for case in cases]
