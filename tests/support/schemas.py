"""300 JSON Schemas of growing difficulty, the same ones every time: scalars, arrays, objects, unions, recursion, documents."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
COUNT = 300

PATTERNS = ("^[a-z]{3,8}$", "^[A-Z]{2}-[0-9]{4}$", "^(red|green|blue)$", r"^\d{3}-\d{2}$", "^[^\\s]{1,10}$", "^(a|b)*c$",
            "^v[0-9]+\\.[0-9]+$", "^[a-zA-Z_][a-zA-Z0-9_]{0,12}$", "^#[0-9a-f]{6}$", "^\\+[1-9][0-9]{6,12}$",
            "^[α-ω]{2,6}$", "colou?r")  # fmt: skip
FORMATS = ("date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "uri", "duration")
NAMES = ("name", "id", "größe", "имя", "名前", "emoji 🙂", "a b", "with\"quote", "back\\slash", "type", "$ref", "items",
         "price", "tags", "email", "über-uns", "x/y", "~tilde", "", "ключ", "ζωή", "count", "note", "kind")  # fmt: skip
WORDS = ("red", "green", "blue", "", 'a "quoted" word', "tab\there", "naïve", "日本", "🙂", "new\nline", "null", "0")


def string(r: random.Random) -> Schema:
    least = r.randrange(6)
    return r.choice(
        [
            {"type": "string", "maxLength": r.randrange(1, 30)},
            {"type": "string", "minLength": least, "maxLength": least + r.randrange(12)},
            {"type": "string", "pattern": r.choice(PATTERNS), "maxLength": 40},
            {"type": "string", "format": r.choice(FORMATS)},
        ]
    )


def number(r: random.Random) -> Schema:
    low = r.randrange(-500, 500)
    kind = r.choice(["integer", "number"])
    return r.choice(
        [
            {"type": kind, "minimum": low, "maximum": low + r.randrange(1000)},
            {"type": kind, "exclusiveMinimum": low, "exclusiveMaximum": low + 2 + r.randrange(50)},
            {"type": kind, "minimum": low, "maximum": low + 10_000},
            {"type": "integer", "multipleOf": r.choice([2, 3, 5, 10]), "minimum": 0, "maximum": 200},
            {"type": "number", "minimum": round(low / 7, 2), "maximum": round(low / 7, 2) + 1.25},
        ]
    )


def fixed(r: random.Random) -> Schema:
    values: list[Any] = [*r.sample(WORDS, 3), r.randrange(100), None, True, -1.5, [1, "two"], {"three": 3}]
    return r.choice([{"const": r.choice(values)}, {"enum": r.sample(values, r.randrange(1, 6))}])


def plain(r: random.Random) -> Schema:
    return {"type": r.choice(["boolean", "null", ["boolean", "null"], ["integer", "boolean"]])}


def scalar(r: random.Random, _depth: int = 0) -> Schema:
    found = r.choice([string, string, number, number, fixed, plain])(r)
    if r.random() < 0.15 and found.get("type") in ("string", "integer", "number"):
        found["type"] = [found["type"], "null"]  # nullable, as draft 2020-12 has it
    return found


def array(r: random.Random, depth: int) -> Schema:
    least = r.randrange(3)
    if r.random() < 0.35:
        places = [anything(r, depth - 1) for _ in range(r.randrange(1, 4))]
        rest = r.choice([{"items": False}, {"items": scalar(r), "maxItems": len(places) + 2}])
        return {"type": "array", "prefixItems": places, "minItems": len(places), **rest}
    return {"type": "array", "items": anything(r, depth - 1), "minItems": least, "maxItems": least + r.randrange(1, 4)}


def object_(r: random.Random, depth: int) -> Schema:
    names = r.sample(NAMES, r.randrange(1, 6))
    found: Schema = {"type": "object", "properties": {name: anything(r, depth - 1) for name in names}}
    found["required"] = names if r.random() < 0.5 else r.sample(names, r.randrange(len(names) + 1))
    found["additionalProperties"] = r.choice([False, False, False, {"type": "integer", "minimum": 0, "maximum": 9}])
    if found["additionalProperties"] and found["required"] == names:
        found["maxProperties"] = len(names) + 2
    return found


def mapping(r: random.Random, depth: int) -> Schema:
    keys = r.choice(["^[a-z]{1,4}$", "^k[0-9]$", "^[A-Z]+$"])
    inner = anything(r, depth - 1)
    return {"type": "object", "patternProperties": {keys: inner}, "additionalProperties": False, "maxProperties": 3}


def union(r: random.Random, depth: int) -> Schema:
    if r.random() < 0.5:
        return {"anyOf": [anything(r, depth - 1) for _ in range(r.randrange(2, 4))]}
    if r.random() < 0.5:
        return {"oneOf": [{"type": "string", "maxLength": 5}, number(r), {"type": "array", "maxItems": 0}]}
    kinds = r.sample(["circle", "square", "line", "text"], 3)
    return {"oneOf": [tagged(r, kind, depth) for kind in kinds]}


def tagged(r: random.Random, kind: str, depth: int) -> Schema:
    own = {"kind": {"const": kind}, r.choice(NAMES[2:8]): anything(r, depth - 1)}
    return {"type": "object", "properties": own, "required": list(own), "additionalProperties": False}


def both(r: random.Random, depth: int) -> Schema:
    one, two = r.sample(NAMES, 2)
    parts = [{"type": "object", "properties": {n: anything(r, depth - 1)}, "required": [n]} for n in (one, two)]
    return {"allOf": [*parts, {"properties": {one: True, two: True}, "additionalProperties": False}]}


def anything(r: random.Random, depth: int) -> Schema:
    if depth <= 0:
        return scalar(r)
    kinds: list[Callable[[random.Random, int], Schema]] = [scalar, array, object_, object_, mapping, union]
    return r.choice(kinds)(r, depth)


def chain(r: random.Random) -> Schema:
    node = {"value": scalar(r), "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}
    return {"$ref": "#/$defs/node", "$defs": {"node": closed(node)}}


def tree(r: random.Random) -> Schema:
    children = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": r.randrange(1, 3)}
    return {"$defs": {"tree": closed({r.choice(NAMES): scalar(r), "children": children})}, "$ref": "#/$defs/tree"}


def formula(_r: random.Random) -> Schema:
    term = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"$ref": "#/$defs/call"}]}
    call = closed(
        {"op": {"enum": ["+", "-", "*"]}, "left": {"$ref": "#/$defs/term"}, "right": {"$ref": "#/$defs/term"}}
    )
    return {"$defs": {"term": term, "call": call}, "allOf": [{"$ref": "#/$defs/term"}]}


def person(r: random.Random) -> Schema:
    address = closed(
        {"street": {"type": "string", "maxLength": 20}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}}
    )
    own = {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "born": {"type": "string", "format": "date"},
        "email": {"type": ["string", "null"], "format": "email", "maxLength": 30},
        "address": {"$ref": "#/definitions/address"},
        "friends": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": r.randrange(3)},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Person",
        "definitions": {"address": address},
    } | closed(own)


def invoice(r: random.Random) -> Schema:
    line = closed({"sku": string(r), "quantity": {"type": "integer", "minimum": 1, "maximum": 99}, "price": number(r)})
    own = {
        "number": {
            "type": "string",
            "pattern": "^INV-[0-9]{4}$",
            "description": "as printed",
            "examples": ["INV-0001"],
        },
        "currency": {"enum": ["EUR", "USD", "¥"], "default": "EUR"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "minItems": 1, "maxItems": 2},
        "paid": {"type": "boolean"},
    }
    return {"$defs": {"line": line}} | closed(own)


def place(_r: random.Random) -> Schema:
    position = {"type": "array", "prefixItems": [{"type": "number", "minimum": -180, "maximum": 180},
                {"type": "number", "minimum": -90, "maximum": 90}], "items": False, "minItems": 2}  # fmt: skip
    point = closed({"type": {"const": "Point"}, "coordinates": position})
    line = closed({"type": {"const": "LineString"}, "coordinates": {"type": "array", "items": position, "maxItems": 2}})
    return closed({"type": {"const": "Feature"}, "geometry": {"oneOf": [point, line, {"type": "null"}]}})


def closed(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def schema_at(index: int, r: random.Random) -> Schema:
    """One for the place `index`: the further, the more difficult."""
    if index < 60:
        return scalar(r)
    if index < 100:
        return array(r, 1)
    if index < 160:
        return r.choice([object_, object_, mapping])(r, 1)
    if index < 200:
        return r.choice([union, both])(r, 1)
    if index < 240:
        return r.choice([chain, tree, formula, person, invoice, place])(r)
    return r.choice([object_, array, union, both])(r, 2 + (index >= 280))


def schemas() -> list[Schema]:
    found: dict[str, Schema] = {}
    seed = 0
    while len(found) < COUNT:
        schema = schema_at(len(found), random.Random(seed))
        found.setdefault(json.dumps(schema), schema)
        seed += 1
    return list(found.values())
