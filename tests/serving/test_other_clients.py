"""Clients of other libraries rerank by `lwr serve`: their own code, in an environment without lwr.

docs/how-to/other-tools.md says which versions were run.
"""

from __future__ import annotations

import json
import subprocess
import textwrap
import venv
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import tiny
from server_process import start, stop

from lwr.model.reranker import LayerwiseReranker

pytestmark = pytest.mark.nightly

QUERY = "load the object"
TEXTS = ["def decode(s): return s", "def load(path): return json.load(path)", "cats sleep a lot"]
CLIENTS = {
    "langchain-cohere": """
        from langchain_cohere import CohereRerank
        from langchain_core.documents import Document

        client = CohereRerank(base_url=address, cohere_api_key="any", model="any", top_n=2)
        found = client.compress_documents([Document(page_content=text) for text in texts], query)
        answer = [(each.page_content, each.metadata["relevance_score"]) for each in found]
    """,
    "llama-index-postprocessor-cohere-rerank": """
        from llama_index.core.schema import NodeWithScore, TextNode
        from llama_index.postprocessor.cohere_rerank import CohereRerank

        client = CohereRerank(api_key="any", model="any", top_n=2, base_url=address)
        nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
        answer = [(each.text, each.score) for each in client.postprocess_nodes(nodes, query_str=query)]
    """,
    "llama-index-postprocessor-jinaai-rerank": """
        from llama_index.core.schema import NodeWithScore, TextNode
        from llama_index.postprocessor.jinaai_rerank import JinaRerank

        client = JinaRerank(api_key="any", model="any", top_n=2, base_url=f"{address}/v1")
        nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
        answer = [(each.text, each.score) for each in client.postprocess_nodes(nodes, query_str=query)]
    """,
    "llama-index-postprocessor-tei-rerank": """
        from llama_index.core.schema import NodeWithScore, TextNode
        from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

        client = TextEmbeddingInference(base_url=address, model_name="any", top_n=2)
        nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
        answer = [(each.text, each.score) for each in client.postprocess_nodes(nodes, query_str=query)]
    """,
    "cohere-haystack": """
        from haystack import Document
        from haystack.utils import Secret
        from haystack_integrations.components.rankers.cohere import CohereRanker

        client = CohereRanker(model="any", api_key=Secret.from_token("any"), api_base_url=address, top_k=2)
        found = client.run(query=query, documents=[Document(content=text) for text in texts])["documents"]
        answer = [(each.content, each.score) for each in found]
    """,
    "jina-haystack": """
        from haystack import Document
        from haystack.utils import Secret
        from haystack_integrations.components.rankers.jina import JinaRanker

        url = f"{address}/v1/rerank"
        client = JinaRanker(model="any", api_key=Secret.from_token("any"), base_url=url, top_k=2)
        found = client.run(query=query, documents=[Document(content=text) for text in texts])["documents"]
        answer = [(each.content, each.score) for each in found]
    """,
}
"""Package that is installed -> code that sets `answer` to the two best texts and their scores, from the variables
`address`, `query` and `texts`."""


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served") / "tiny-bert"
    backbone, tokenizer = tiny.backbone("bert"), tiny.tokenizer(encoder=True)
    LayerwiseReranker(
        backbone, tokenizer, start_layer=1, query_max_len=16, passage_max_len=64
    ).save_pretrained(folder)
    process, address = start(folder)
    yield address
    stop(process)


@pytest.mark.parametrize("package", CLIENTS)
def test_client_gets_the_ranking_of_the_server(package, address, tmp_path):
    python = tmp_path / "venv/bin/python"
    venv.create(tmp_path / "venv", with_pip=True)
    done = subprocess.run([python, "-m", "pip", "install", "-q", package], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"NOT TESTED: cannot install {package}: {done.stderr.strip().splitlines()[-1]}")
    answer = httpx2.post(f"{address}/v1/rerank", json={"query": QUERY, "documents": TEXTS, "top_n": 2}).json()
    expected = [(each["document"]["text"], each["relevance_score"]) for each in answer["results"]]
    found = run_client(python, CLIENTS[package], address, tmp_path)
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-6)


def run_client(python: Path, code: str, address: str, folder: Path) -> list[tuple[str, float]]:
    """Run a client in another process; return its texts and scores, best first."""
    out = folder / "answer.json"
    head = f"import json\naddress, query, texts = {address!r}, {QUERY!r}, {TEXTS!r}\n"
    script = head + textwrap.dedent(code) + f"json.dump(answer, open({str(out)!r}, 'w'))\n"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [tuple(each) for each in json.loads(out.read_text())]
