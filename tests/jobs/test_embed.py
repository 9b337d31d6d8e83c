"""Vectors are sentence-transformers', through both engines; lengths, order, batches and prefixes are kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import numpy as np
import pytest

from localllm.convert import gguf
from localllm.convert.onnx import export
from localllm.engines import open_embedder
from localllm.errors import BadModelFile, UsageError
from localllm.jobs import embed as job
from localllm.jobs.prefixes import prefix_for
from localllm.types import EngineOptions
from tests.support import checkpoints, sentences

EXPECTED = Path(__file__).parents[1] / "data" / "embeddings.npz"
OPTIONS = EngineOptions(threads=2)


class Counter:
    """An embedder whose vector of a text is its length and its first token; it remembers its batches."""

    dimensions, limit, batch = 2, 8, 12
    notices: Sequence[str] = ()
    names: Sequence[str] = ()

    def __init__(self) -> None:
        self.prompts: dict[str, str] = {}
        self.batches: list[list[int]] = []

    def tokenize_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [[1, *map(ord, text), 2] for text in texts]

    def encode(self, batch: Sequence[Sequence[int]]) -> np.ndarray:
        self.batches.append([len(ids) for ids in batch])
        return np.array([[len(ids), ids[-2]] for ids in batch], np.float32)

    def interruptible(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None: ...


def test_the_order_is_kept_and_batches_are_of_like_length() -> None:
    texts = ["abc", "", "abcdef", "a", "ab", "abcde"]
    embedder, heard = Counter(), list[int]()
    found = job.embed(embedder, texts, normalize=False, report=heard.append)
    assert found[:, 0].tolist() == [len(text) + 2 for text in texts]
    assert embedder.batches == [[8], [7], [5, 4], [3, 2]]
    assert heard == [1, 2, 4, 6]
    assert all(len(batch) * batch[0] <= embedder.batch for batch in embedder.batches)


def test_nothing_is_an_array_of_nothing() -> None:
    assert job.embed(Counter(), []).shape == (0, 2)


def test_more_texts_than_are_held_at_once() -> None:
    texts = (chr(97 + i % 26) for i in range(3 * job.WINDOW + 5))
    parts = list(job.stream(Counter(), texts, normalize=False))
    assert [len(part) for part in parts] == [job.WINDOW] * 3 + [5]
    assert np.concatenate(parts)[:, 1].tolist() == [97 + i % 26 for i in range(3 * job.WINDOW + 5)]


def test_a_text_that_is_too_long_is_named_or_cut_as_asked() -> None:
    with pytest.raises(UsageError, match="text 2 has 12 tokens and the model takes 8") as caught:
        job.embed(Counter(), ["a", "abcdefghij"])
    assert "--truncate" in caught.value.hint
    embedder = Counter()
    found = job.embed(embedder, ["a", "abcdefghij"], normalize=False, truncate=True)
    assert found[1].tolist() == [8, ord("f")]  # the token behind the text has stayed


def test_vectors_have_the_length_one() -> None:
    found = job.embed(Counter(), ["a", "abc"])
    assert np.allclose(np.linalg.norm(found, axis=1), 1)


@pytest.mark.parametrize(
    ("name", "query", "passage"),
    [
        ("intfloat/multilingual-e5-small", "query: ", "passage: "),
        ("nomic-embed-text-v1.5.Q8_0.gguf", "search_query: ", "search_document: "),
        ("bge-small-en-v1.5-q8_0.gguf", "Represent this sentence for searching relevant passages: ", ""),
        ("bge-m3", "", ""),
        ("all-MiniLM-L6-v2", "", ""),
        ("paraphrase-mpnet-base-v2", "", ""),
        ("something-else", None, None),
    ],
)
def test_prefixes_of_known_models(name: str, query: str | None, passage: str | None) -> None:
    assert prefix_for("query", {}, [name]) == query
    assert prefix_for("passage", {}, ["", name]) == passage
    assert prefix_for("query", {"query": "Q: "}, [name]) == "Q: "
    assert prefix_for("passage", {"document": "D: "}, [name]) == "D: "


@pytest.fixture(scope="session", params=["gguf-f32", "gguf-f16", "onnx-f32", "onnx-f16", "onnx-q8"])
def made(request: pytest.FixtureRequest, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    kind, _, dtype = request.param.partition("-")
    target = tmp_path_factory.mktemp(request.param) / ("m.gguf" if kind == "gguf" else "m")
    if kind == "gguf":
        gguf.write(gguf.plan(minilm, dtype), target)
    else:
        export.write(export.plan(minilm, dtype), target)
    return dtype, target


@pytest.mark.slow
def test_minilm_is_sentence_transformers(made: tuple[str, Path]) -> None:
    dtype, path = made
    with np.load(EXPECTED) as file:
        expected = file["embeddings"]
    with closing(open_embedder(path, OPTIONS)) as embedder:
        assert embedder.dimensions == 384 and not embedder.notices
        found = job.embed(embedder, sentences.TEXTS, truncate=True)
    assert found.dtype == np.float32
    cosines = (found * expected).sum(axis=1)
    assert cosines.min() >= (0.998 if dtype == "q8" else 0.9999)
    if dtype != "q8":
        assert np.abs(found - expected).max() < 1e-3


def hidden_states(name: str = "bert") -> tuple[list[int], np.ndarray]:
    return checkpoints.case(name)["tokens"], checkpoints.expected(name)


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_is_what_the_definitions_say(kind: str, pooling: str, tmp_path: Path) -> None:
    tokens, hidden = hidden_states()
    folder = checkpoints.write(tmp_path / "bert", "bert")
    path = tmp_path / ("m.gguf" if kind == "gguf" else "m")
    gguf.write(gguf.plan(folder, "f32"), path) if kind == "gguf" else export.write(export.plan(folder), path)
    expected = {"mean": hidden.mean(axis=0), "cls": hidden[0], "last": hidden[-1]}[pooling]
    with closing(open_embedder(path, OPTIONS, pooling)) as embedder:
        found = embedder.encode([tokens, tokens[:9], tokens])
    assert np.abs(found[0] - expected).max() < 2e-3 and np.abs(found[2] - found[0]).max() < 1e-4


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_a_model_that_notes_no_pooling_says_so(kind: str, tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "bert", "bert")
    path = tmp_path / ("m.gguf" if kind == "gguf" else "m")
    gguf.write(gguf.plan(folder, "f32"), path) if kind == "gguf" else export.write(export.plan(folder), path)
    with closing(open_embedder(path, OPTIONS)) as embedder:
        assert len(embedder.notices) == 1 and "the mean is taken" in embedder.notices[0]
    with pytest.raises(UsageError, match="--pooling sum"):
        open_embedder(path, OPTIONS, "sum")


def test_many_texts_in_one_batch(tmp_path: Path) -> None:
    """More than llama.cpp evaluates at once, each with what it gets alone."""
    path = tmp_path / "m.gguf"
    gguf.write(gguf.plan(checkpoints.write(tmp_path / "bert", "bert"), "f32"), path)
    tokens = checkpoints.case("bert")["tokens"]
    texts = [tokens[i % 7 : 8 + i % 11] for i in range(150)]
    with closing(open_embedder(path, OPTIONS)) as embedder:
        together = embedder.encode(texts)
        alone = np.concatenate([embedder.encode([text]) for text in texts[::10]])
    assert np.abs(together[::10] - alone).max() < 2e-3  # GELU is looked up in a table of float16


def test_a_chat_model_embeds_too(model_path: Path) -> None:
    with closing(open_embedder(model_path, OPTIONS)) as embedder:
        found = job.embed(embedder, ["Good morning.", "Good evening.", "The stock market fell."])
        assert found.shape == (3, 576) and np.isfinite(found).all()
    assert found[0] @ found[1] > found[0] @ found[2]


def test_a_pooling_that_llama_cpp_has_not(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    gguf.write(gguf.plan(checkpoints.write(tmp_path / "bert", "bert"), "f32"), path)
    with pytest.raises(BadModelFile, match="does not pool by max"):
        open_embedder(path, OPTIONS, "max")
