"""Holds an answer to a form: JSON Schema, grammar, regular expression or a choice of texts.

`compile_constraint` turns a `Constraint` into a grammar of llguidance (Rust), which tells before each token which ones
may come; engines take the others out of the distribution. Pure: files are read by whoever has their names. What the
grammar cannot hold an answer to is an error that names it: nothing of a schema is ignored in silence.

https://json-schema.org/draft/2020-12 ; https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md ;
GBNF as in llama.cpp's grammars/README.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from localllm.errors import EngineError, UsageError
from localllm.protocols import TokenModel
from localllm.types import Constraint

# Space between the parts of a JSON text: one blank, or a new line with its indentation. A small model could otherwise
# write blanks until its limit.
_WHITESPACE = r"\x20|\n\x20{0,32}"
_OPTIONS: Any = {"whitespace_pattern": _WHITESPACE, "lenient": False, "coerce_one_of": False}

# Where schemas stand inside a schema: under a keyword itself, in a list, or by name.
_SCHEMA = {"additionalProperties", "items", "not", "if", "then", "else", "contains", "propertyNames",
           "unevaluatedItems", "unevaluatedProperties"}  # fmt: skip
_SCHEMAS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
# Those that say nothing of what is valid, and those that llguidance knows, if only to refuse them.
_NOTES = {"$schema", "$id", "$anchor", "$comment", "title", "description", "default", "examples", "example",
          "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType", "contentSchema"}  # fmt: skip
_PLAIN = {"$ref", "type", "enum", "const", "minItems", "maxItems", "uniqueItems", "minContains", "maxContains",
          "minProperties", "maxProperties", "required", "dependentRequired", "dependencies", "minLength", "maxLength",
          "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
          "$dynamicRef", "$dynamicAnchor", "additionalItems"}  # fmt: skip
_KNOWN = _SCHEMA | _SCHEMAS | _NAMED | _NOTES | _PLAIN
# Formats that llguidance holds to loosely (it lets 2023-02-29 and 12:00:60Z through), as the patterns they are.
_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_BY_FOUR = "(0[48]|[2468][048]|[13579][26])"
_DATE = (
    f"({_YEAR}-(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|{_YEAR}-(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    f"|{_YEAR}-02-(0[1-9]|1[0-9]|2[0-8])|([0-9]{{2}}{_BY_FOUR}|{_BY_FOUR}00)-02-29)"
)
_HOUR = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = f"{_HOUR}:[0-5][0-9](\\.[0-9]{{1,9}})?(Z|[+-]{_HOUR})"
_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}

_SIMPLER = "a simpler one, with smaller bounds, will do"
_FLAGS = {"schema": "--schema", "grammar": "--grammar", "regex": "--regex", "choice": "--choice"}


class Matcher:
    """Follows one answer token by token. Raises EngineError where the grammar grows beyond its bounds."""

    def __init__(self, tokenizer: Any, grammar: str, constraint: Constraint, begun: str = "") -> None:
        """`grammar` is what `compile_constraint` made of `constraint`; `begun` is what stands of the answer already.

        Raises UsageError where that does not fit.
        """
        from llguidance import LLMatcher

        flag = _FLAGS[constraint.kind]
        self._matcher, self._flag = LLMatcher(tokenizer, grammar, log_level=0), flag
        self._tokenizer, self._constraint = tokenizer, constraint
        self._begun, self._tokens = begun, list[int]()
        tokens = tokenizer.greedy_tokenize(begun)
        if self._matcher.try_consume_tokens(tokens) < len(tokens):
            raise UsageError(f"{flag}: no text of this form begins with {begun!r}", "mend --prefill")
        allowed = any(self._matcher.compute_bitmask())
        problem = self._matcher.get_error()
        if problem and "NoExtension" not in problem:
            raise UsageError(f"{flag}: {_first_line(problem)}", _SIMPLER)
        if problem or not allowed:
            raise UsageError(f"{flag}: no text has this form", "does it ask for itself without an end?")

    def mask(self) -> bytes:
        """A bit for every token that may come next, as `types.Mask` has it."""
        mask: bytes = self._matcher.compute_bitmask()
        self._check()
        return mask

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()
        self._tokens.append(token)

    @property
    def fulfilled(self) -> bool:
        """Whether the answer so far has the form."""
        if not self._matcher.is_accepting():
            return False
        text = self._begun + self._tokenizer.decode_bytes(self._tokens).decode(errors="replace")
        return self._constraint.kind != "schema" or is_sound(text, self._constraint.text)

    @property
    def ended(self) -> bool:
        """Whether nothing can follow but the end."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"{self._flag}: {_first_line(self._matcher.get_error())}", _SIMPLER)


def compile_constraint(constraint: Constraint) -> str:
    """The grammar that a constraint means. Raises UsageError, naming what is wrong or not supported."""
    from llguidance import LLMatcher, grammar_from

    flag = _FLAGS[constraint.kind]
    try:
        if constraint.kind == "schema":
            schema = _with_patterns(parse_schema(constraint.text))
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)
        elif constraint.kind == "choice":
            choices = json.loads(constraint.text)
            if not choices:
                raise ValueError("there is nothing to choose from")
            grammar = LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choices)))
        else:
            grammar = grammar_from("regex" if constraint.kind == "regex" else "gbnf", constraint.text)
    except (ValueError, IndexError, RecursionError) as error:
        raise UsageError(f"{flag}: {_first_line(str(error) or type(error).__name__)}") from None
    if problem := LLMatcher.validate_grammar(grammar):
        raise UsageError(f"{flag}: {_explain(problem)}", _hint(constraint.kind))
    return str(grammar)


def parse_schema(text: str) -> dict[str, Any]:
    """A JSON Schema as an object. Raises UsageError where it is none, or has a keyword that JSON Schema has not."""
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--schema: it is not JSON: {error}") from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise UsageError("--schema: a JSON Schema is an object")
    for path, keyword in _unknown(schema, "#"):
        raise UsageError(
            f"--schema: {path} has the keyword {keyword!r}, which is not JSON Schema's (draft 2020-12)",
            "it would hold the answer to nothing; remove it, or mend its spelling",
        )
    return schema


def is_sound(text: str, schema: str) -> bool:
    """Whether an answer can be read as JSON, and what the grammar cannot see does not make it invalid.

    A property that is not declared may come twice, and then counts once. Of what can be held to, only `minProperties`
    asks for more.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs) and '"minProperties"' in schema:
            raise ValueError("a property occurs twice")
        return found

    try:
        json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return False
    return True


def make_tokenizer(model: TokenModel) -> Any:
    """The vocabulary of a model as llguidance wants it: the bytes of every token. Takes some 0.1 s; keep it."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Vocabulary(model)), eos_token=_ends(model))


class _Vocabulary:
    """What TokenizerWrapper asks for. A control token has no bytes, and so never stands inside an answer."""

    def __init__(self, model: TokenModel) -> None:
        self._model = model
        self.eos_token_id = _ends(model)[0]
        self.bos_token_id = None
        self.tokens = [model.piece(token) for token in range(model.vocabulary_size)]
        self.special_token_ids = [
            token for token, piece in enumerate(self.tokens) if not piece or model.is_special(token)
        ]
        for token in self.special_token_ids:
            self.tokens[token] = b"\xff[%d]" % token  # toktrie's mark of a token that is no text

    def __call__(self, text: bytes | str) -> list[int]:
        return self._model.tokenize(text if isinstance(text, str) else text.decode(errors="replace"), begin=False)


def _ends(model: TokenModel) -> list[int]:
    ends = [token for token in range(model.vocabulary_size) if model.is_end(token)]
    if not ends:
        raise EngineError("the model has no token that ends an answer, and cannot be held to a form")
    return ends


def _with_patterns(schema: Any) -> Any:
    """The schema with those formats as patterns that llguidance takes too loosely."""
    if not isinstance(schema, dict):
        return schema
    found = {keyword: _inside(keyword, value) for keyword, value in schema.items()}
    if pattern := _FORMATS.get(str(found.get("format"))):
        del found["format"]
        others = found.get("allOf", [])
        if "pattern" not in found:
            found["pattern"] = pattern
        elif isinstance(others, list):  # else the schema is refused for it
            found["allOf"] = [*others, {"pattern": pattern}]
    return found


def _inside(keyword: str, value: Any) -> Any:
    if keyword in _NAMED and isinstance(value, dict):
        return {name: _with_patterns(inner) for name, inner in value.items()}
    if keyword in _SCHEMAS and isinstance(value, list):
        return [_with_patterns(inner) for inner in value]
    return _with_patterns(value) if keyword in _SCHEMA else value


def _unknown(schema: Any, path: str) -> Iterator[tuple[str, str]]:
    """The places and names of the keywords that are none."""
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        here = f"{path}/{keyword}"
        if keyword not in _KNOWN and not keyword.startswith("x-"):
            yield path, keyword
        elif keyword in _NAMED and isinstance(value, dict):
            for name, inner in value.items():
                yield from _unknown(inner, f"{here}/{name}")
        elif keyword in _SCHEMAS and isinstance(value, list):
            for index, inner in enumerate(value):
                yield from _unknown(inner, f"{here}/{index}")
        elif keyword in _SCHEMA:
            yield from _unknown(value, here)


def _explain(problem: str) -> str:
    """llguidance's words, without its excerpts of a grammar that the user did not write."""
    if "Unimplemented keys: " in problem:
        names = json.loads(problem.partition("Unimplemented keys: ")[2].splitlines()[0])
        return f"the keyword{'s' if len(names) > 1 else ''} {', '.join(names)} cannot be held to"
    if "oneOf constraints" in problem:
        return "the keyword oneOf cannot be held to where its alternatives overlap (anyOf can)"
    if "error: " in problem:
        return "no regular expression of the supported kind: " + _first_line(problem.rpartition("error: ")[2])
    return _first_line(problem)


def _hint(kind: str) -> str:
    return {"schema": "README, In scripts, says which keywords are", "regex": "Rust's syntax, without look-around"}.get(
        kind, ""
    )


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason was given")
