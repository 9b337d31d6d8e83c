"""Changes in a TOML file keep everything else of it, or are refused."""

from __future__ import annotations

import pytest

from localllm.errors import UsageError
from localllm.settings import tomllib
from localllm.toml_lines import set_value, unset_value

FILE = '''# my settings
top_k = 20   # few
stop = [
  "[models]",  # looks like a header
  "END",
] # the end
note = """
temperature = 3
"""

[models."qwen3:4b"] # the large one
temperature = 0.5 # calm

[models.'a b'] # another
'''


def changed(before: str, after: str) -> list[str]:
    """The lines that are in one of the two only."""
    one, two = before.splitlines(), after.splitlines()
    return [f"-{line}" for line in one if line not in two] + [f"+{line}" for line in two if line not in one]


@pytest.mark.parametrize(
    ("section", "key", "value", "difference"),
    [
        ((), "top_k", 7, ["-top_k = 20   # few", "+top_k = 7   # few"]),
        ((), "temperature", 0.25, ["+temperature = 0.25"]),
        ((), "stop", ("a", 'b"\x7f\n'), ["-stop = [", '-  "[models]",  # looks like a header', '-  "END",', "-] # the end", '+stop = ["a", "b\\"\\u007f\\n"] # the end']),
        (("models", "qwen3:4b"), "temperature", 1e-05, ["-temperature = 0.5 # calm", "+temperature = 1e-05 # calm"]),
        (("models", "qwen3:4b"), "mmap", False, ["+mmap = false"]),
        (("models", "a b"), "top_k", 3, ["+top_k = 3"]),
        (("models", "new/one:Q4"), "top_k", 3, ["+", '+[models."new/one:Q4"]', "+top_k = 3"]),
        ((), "top_p", float("inf"), ["+top_p = inf"]),
    ],
)  # fmt: skip
def test_set(section: tuple[str, ...], key: str, value: object, difference: list[str]) -> None:
    after = set_value(FILE, section, key, value)
    assert [line for line in changed(FILE, after) if line != "+"] == [line for line in difference if line != "+"]
    table = tomllib.loads(after)
    for name in section:
        table = table[name]
    assert table[key] == (list(value) if isinstance(value, tuple) else value)


def test_set_in_an_empty_file_and_without_a_last_newline() -> None:
    assert set_value("", (), "a", "x") == 'a = "x"\n'
    assert set_value("# c", (), "a", 1) == "# c\na = 1\n"
    assert set_value("b = 1", ("models", "m"), "a", 1) == "b = 1\n\n[models.m]\na = 1\n"


def test_unset() -> None:
    assert changed(FILE, unset_value(FILE, (), "top_k")) == ["-top_k = 20   # few"]
    assert changed(FILE, unset_value(FILE, ("models", "qwen3:4b"), "temperature")) == ["-temperature = 0.5 # calm"]
    assert "END" not in unset_value(FILE, (), "stop")
    with pytest.raises(KeyError):
        unset_value(FILE, (), "temperature")
    with pytest.raises(KeyError):
        unset_value(FILE, ("models", "none"), "top_k")


@pytest.mark.parametrize(
    "text",
    [
        'models = {"m" = {a = 1}}\n',
        '[models]\n"m".a = 1\n',
        "a = 1\na = 2\n",
        "models.m.a = 1\n",
        "a = ",
        "models = 3\n",
    ],
)
def test_what_cannot_be_changed_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="settings file"):
        set_value(text, ("models", "m"), "a", 5)
