"""What embedding models want written before a text, by what the text is for: a query, or a passage to be found.

A model's own notes come first (`config_sentence_transformers.json`). The table stands in for models that have none of
them, GGUF files above all; it repeats what the publishers' model cards say, as far as its author knew them, and was not
checked against the cards when it was written. A model of which nothing is known gets no prefix, and the user is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

Purpose = Literal["query", "passage"]

_SEARCH = "Represent this sentence for searching relevant passages: "
_INSTRUCTED = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
_NAMES: dict[Purpose, tuple[str, ...]] = {"query": ("query", "search_query"), "passage": ("passage", "document")}

# A pattern of the model's name -> the prefix of a query and that of a passage; the first that fits counts.
_TABLE: tuple[tuple[str, str, str], ...] = (
    (r"e5-mistral|e5-.*instruct", _INSTRUCTED.replace("Query:", "Query: "), ""),
    (r"(^|[^a-z])e5-", "query: ", "passage: "),
    (r"bge-m3", "", ""),
    (r"bge-.*-zh", "为这个句子生成表示以用于检索相关文章：", ""),
    (r"bge-.*-en", _SEARCH, ""),
    (r"nomic-embed-text", "search_query: ", "search_document: "),
    (r"mxbai-embed", _SEARCH, ""),
    (r"arctic-embed.*v2", "query: ", ""),
    (r"arctic-embed", _SEARCH, ""),
    (r"qwen3-embedding", _INSTRUCTED, ""),
    (r"embedding-?gemma", "task: search result | query: ", "title: none | text: "),
    (r"minilm|mpnet|(^|[^a-z])gte-|jina-embeddings-v2", "", ""),
)


def prefix_for(purpose: Purpose, prompts: Mapping[str, str], names: Iterable[str]) -> str | None:
    """The prefix by a model's own `prompts`, or by the first of its `names` that is known; None where nothing is."""
    for key in _NAMES[purpose]:
        if key in prompts:
            return prompts[key]
    for name in names:
        for pattern, query, passage in _TABLE:
            if re.search(pattern, name.lower().replace("_", "-").replace(" ", "-")):
                return query if purpose == "query" else passage
    return None
