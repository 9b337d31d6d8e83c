"""The process in which chat templates run: a JSON question a line on stdin, a JSON answer a line on stdout.

Started by path, not imported: it knows Jinja and the standard library and nothing of the package. It renders as
transformers does (`apply_chat_template`): blocks trimmed, loop controls, generation tags, `raise_exception`,
`strftime_now`, `tojson`; what a template may build is bounded here, memory by `bounded.py`, the time by its parent.
"""

import json
import sys
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT = 64 << 20
MAX_POWER = 10_000


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks an answer for training; its text is the block's own."""

    tags = {"generation"}  # noqa: RUF012  # as the base class declares it

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


class Environment(ImmutableSandboxedEnvironment):
    """Integer powers are the one operation that no memory limit stops and no signal interrupts in time."""

    intercepted_binops = frozenset({"**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if abs(right) > MAX_POWER or abs(left) > MAX_POWER:
            raise TemplateError("a power is too large")
        return super().call_binop(context, operator, left, right)


def raise_exception(message: str) -> None:
    raise TemplateError(message)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> Environment:
    made = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def render(jinja: Environment, source: str, context: dict[str, Any]) -> dict[str, str]:
    try:
        pieces, length = [], 0
        for piece in jinja.from_string(source).generate(**context):
            length += len(piece)
            if length > MAX_OUTPUT:
                return {"error": f"its output is longer than {MAX_OUTPUT >> 20} million characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"error": "it needs more memory than it may have"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:  # whatever a template does wrong is an answer, never this process's end
        line = getattr(error, "lineno", None)
        place = f" (line {line})" if line else ""
        return {"error": (f"{error}" or type(error).__name__)[:500].replace("\n", " ") + place}


def main() -> None:
    jinja = environment()
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(render(jinja, question["source"], question["context"])), flush=True)


if __name__ == "__main__":
    main()
