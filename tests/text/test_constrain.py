"""What the masks allow has the form that was asked for: random walks under 300 schemas, and what is refused."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest

from localllm.engines.fake import END, FakeModel
from localllm.errors import EngineError, LocalLLMError, UsageError
from localllm.text.constrain import Matcher, compile_constraint, is_sound, make_tokenizer
from localllm.types import Constraint, ConstraintKind
from tests.support.schemas import COUNT, Schema, schemas

SCHEMAS = schemas()
TOKENIZER = make_tokenizer(FakeModel(b"", 64))


def matcher(kind: ConstraintKind, text: str, begun: str = "") -> Matcher:
    constraint = Constraint(kind, text)
    return Matcher(TOKENIZER, compile_constraint(constraint), constraint, begun)


def fits(kind: ConstraintKind, form: str | Schema, text: str) -> bool:
    """Whether the whole text has the form."""
    following = matcher(kind, form if isinstance(form, str) else json.dumps(form))
    try:
        for byte in text.encode():
            following.accept(byte)
    except LocalLLMError:
        return False
    return following.fulfilled


def walk(following: Matcher, seed: int) -> str:
    """A random text of the form, a byte at a time; what ends something is taken more often, so that it ends."""
    draw = random.Random(seed)
    text = bytearray()
    while not following.ended:
        bits = following.mask()
        allowed = [token for token in range(END + 1) if bits[token // 8] >> token % 8 & 1]
        ending = [token for token in allowed if token == END or token in b'"}],']
        plain = [token for token in allowed if token < 128] or allowed
        token = draw.choice(ending if ending and draw.random() < 0.3 else plain)
        if token == END:
            break
        following.accept(token)
        text.append(token)
    assert following.fulfilled
    return text.decode()


def errors(schema: Schema, text: str) -> list[str]:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    return [e.message for e in validator(schema, format_checker=checker).iter_errors(json.loads(text))]


def check(index: int, seed: int) -> None:
    schema = SCHEMAS[index]
    text = walk(matcher("schema", json.dumps(schema)), seed)
    assert errors(schema, text) == [], (index, text, schema)


@pytest.mark.parametrize("index", range(0, COUNT, 10))
def test_a_random_walk_is_valid(index: int) -> None:
    check(index, 1)


@pytest.mark.slow
def test_random_walks_under_every_schema_are_valid() -> None:
    assert len(SCHEMAS) == len({json.dumps(schema) for schema in SCHEMAS}) == COUNT
    for index in range(COUNT):
        check(index, 2)


def test_the_schemas_are_schemas_and_of_every_kind() -> None:
    for schema in SCHEMAS:
        jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(schema)
    text = json.dumps(SCHEMAS, ensure_ascii=False)
    for word in ("$ref", "definitions", "anyOf", "oneOf", "allOf", "prefixItems", "patternProperties", "maxProperties",
                 "pattern", "format", "exclusiveMinimum", "multipleOf", "const", "enum", "null", "имя", "🙂"):  # fmt: skip
        assert text.count(f'"{word}"') + text.count(f" {word}") > 1, word


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "format": "date"}, ['"2024-02-29"', '"2000-02-29"'], ['"2023-02-29"', '"1900-02-29"', '"0000-01-01"', '"2023-04-31"']),
        ({"type": "string", "format": "time"}, ['"23:59:59.5+01:00"'], ['"12:00:60Z"', '"24:00:00Z"', '"12:00:00"']),
        ({"type": "string", "format": "date-time"}, ['"2024-02-29T00:00:00Z"'], ['"2023-02-29T00:00:00Z"']),
        ({"type": "string", "format": "date", "pattern": "^2024"}, ['"2024-01-01"'], ['"2023-01-01"']),
        ({"type": "string", "minLength": 2, "maxLength": 2}, ['"🙂🙂"', '"é\\n"'], ['"🙂"', '"abc"']),
        ({"type": "string", "pattern": "b"}, ['"abc"'], ['"ac"']),
        ({"type": "integer"}, ["0", "-7"], ["01", "1e2", "1.5"]),
        ({"type": "array", "items": {"type": "integer"}}, ["[1, 2]", "[\n  1,\n  2\n]"], ["[  1]", "[1,]"]),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [{"type": "integer"}], "additionalItems": False}, ["[1]"], ["[1,2]", '["a"]']),
        ({"type": "object", "properties": {"a": True, "b": True}, "required": ["b"], "additionalProperties": False}, ['{"b":1}', '{"a": {}, "b": []}'], ['{"a":1}', '{"b":1,"c":2}']),
        ({}, ['{"anything": [null]}', "1"], ["", "nul"]),
    ],
)  # fmt: skip
def test_schemas(schema: Schema, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not fits("schema", schema, text)] == []
    assert [text for text in bad if fits("schema", schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "uniqueItems": True}, "the keyword uniqueItems cannot be held to"),
        ({"properties": {"a": {"not": {}}}}, "the keyword not cannot be held to"),
        ({"if": {}, "then": {}}, "the keywords if, then cannot be held to"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "array", "contains": {"type": "integer"}}, "contains"),
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
        ({"oneOf": [{"minimum": 1}, {"minimum": 2}]}, "the keyword oneOf cannot be held to where its alternatives overlap"),
        ({"type": "string", "format": "iban"}, "Unknown format: iban"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around.* is not supported"),
        ({"type": "object", "minItem": 3}, r"# has the keyword 'minItem', which is not JSON Schema's"),
        ({"properties": {"a": {"minLenght": 3}}}, r"#/properties/a has the keyword 'minLenght'"),
        ({"type": "string", "nullable": True}, "'nullable'"),
        ({"type": "frob"}, "Invalid type: frob"),
        ({"$ref": "#/$defs/none"}, "'/\\$defs/none' does not exist"),
        ({"$ref": "http://example.org/s"}, "example.org"),
        ({"type": "integer", "minimum": 5, "maximum": 2}, "Unsatisfiable schema"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no text has this form"),
        ({"not": {}, "x-guidance": {"lenient": True}}, "the keyword not cannot be held to"),
        ("{nonsense", "it is not JSON"),
        ("[1]", "a JSON Schema is an object"),
        ("false", "a JSON Schema is an object"),
        ("[" * 100_000, "--schema: "),
    ],
)  # fmt: skip
def test_what_cannot_be_held_to_is_named(schema: Schema | str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        matcher("schema", schema if isinstance(schema, str) else json.dumps(schema))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_notes_and_a_schemas_own_words_are_no_keywords() -> None:
    schema = {"$comment": "c", "title": "t", "examples": [{"minItem": 1}], "x-mine": 1, "const": {"minItem": 3}}
    assert fits("schema", schema, '{"minItem": 3}')


@pytest.mark.parametrize(
    ("kind", "form", "good", "bad"),
    [
        ("regex", "[0-9]{3}-[0-9]{2}", ["123-45"], ["12-345", "123-456", "x123-45"]),
        ("regex", "(ja|nein)!?", ["ja", "nein!"], ["jein", "ja!!"]),
        ("choice", '["yes", "no", "été 🙂", "a\\nb", "say \\"hi\\"", "\\\\"]', ["no", "été 🙂", "a\nb", 'say "hi"', "\\"], ["", "yesno", "été"]),
        ("grammar", 'root ::= item ("," ws item)*\nitem ::= [a-z]+ # a comment\nws ::= " "?\n', ["a", "ab, c,d"], ["", "a,", "A"]),
        ("grammar", 'root ::= expr\nexpr ::= "(" expr ")" | [0-9]{1,3}', ["((7))", "123"], ["((7)", "1234"]),
    ],
)  # fmt: skip
def test_other_forms(kind: ConstraintKind, form: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not fits(kind, form, text)] == []
    assert [text for text in bad if fits(kind, form, text)] == []


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("regex", "(a"), ("regex", "a{3,2}"), ("regex", "(?<=a)b"),
        ("grammar", ""), ("grammar", "root ::= item"), ("grammar", "root := x"), ("grammar", 'root ::= "a'),
        ("grammar", "item ::= [a-z]"), ("grammar", "\0\x01"), ("grammar", "root ::= root"),
        ("choice", "[]"), ("schema", '{"format": "date", "pattern": "a", "allOf": true}'),
    ],
)  # fmt: skip
def test_forms_that_are_none(kind: ConstraintKind, form: str) -> None:
    with pytest.raises(UsageError, match=f"^--{kind}: ") as caught:
        matcher(kind, form)
    assert "\n" not in str(caught.value)


def test_a_begun_answer() -> None:
    following = matcher("schema", '{"type": "object", "properties": {"a": {"type": "integer"}}}', '{"a": 1')
    following.accept(ord("}"))
    assert following.fulfilled
    with pytest.raises(UsageError, match="no text of this form begins with 'x'"):
        matcher("regex", "[0-9]+", "x")


def test_no_endless_blanks() -> None:
    following = matcher("schema", '{"type": "array"}')
    for byte in b"[\n" + b" " * 32:
        following.accept(byte)
    assert not following.mask()[ord(" ") // 8] >> ord(" ") % 8 & 1


def test_sound() -> None:
    twice = '{"a": 1, "\\u0061": 2}'
    assert is_sound(twice, '{"maxProperties": 2}') and not is_sound(twice, '{"minProperties": 2}')
    assert is_sound('{"a": 1, "b": {"a": 2}}', '{"minProperties": 2}')
    assert not is_sound("{", "{}") and not is_sound("[" * 100_000 + "]" * 100_000, "{}")
    for text, sound in (('{"a": 1, "a": 2}', False), ('{"a": 1, "b": 2}', True)):
        assert fits("schema", {"type": "object", "minProperties": 2}, text) is sound


def test_a_model_without_an_end_is_an_error() -> None:
    class Endless(FakeModel):
        def is_end(self, token: int) -> bool:
            return False

    with pytest.raises(LocalLLMError, match="no token that ends an answer"):
        make_tokenizer(Endless(b"", 64))


@pytest.mark.slow
def test_a_form_that_grows_beyond_its_bounds_is_an_error() -> None:
    following = matcher("regex", "(a{1000}){1000}")
    with pytest.raises(EngineError, match="--regex: .*too many expressions") as caught:
        for _ in range(2000):
            following.mask()
            following.accept(ord("a"))
    assert "simpler" in caught.value.hint
