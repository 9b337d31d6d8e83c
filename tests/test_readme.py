"""What the README says is so."""

from __future__ import annotations

import re
from pathlib import Path

from localllm import errors
from localllm.cli import Commands
from localllm.engines import ENGINES
from localllm.ui.chat.table import commands

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_two_commands_set_everything_up() -> None:
    start = README.partition("## Start")[2].partition("\n## ")[0]
    first, second = re.findall(r"```bash\n(.*?)\n```", start, re.S)
    assert "\n" not in first and "localllm run --yes" in first
    assert "\n" not in second and second.endswith("-m pytest")
    assert re.search(r"the tests:\n\n```bash\n" + re.escape(second), README)


def test_every_command_is_shown() -> None:
    for name in Commands():
        assert f"localllm {name}" in README, name
    for name in commands():
        assert name in README, name


def test_every_exit_code_is_documented() -> None:
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    assert {int(c) for c in re.findall(r"^\| (\d+) \|", README, re.M)} == codes


def test_the_tree_names_every_room() -> None:
    tree = README.partition("## The house")[2]
    for path in sorted((ROOT / "localllm").iterdir()):
        if path.name in ("__pycache__", "__init__.py"):
            continue
        assert path.name in tree, path.name
    for module in ENGINES.values():
        assert module.rpartition(".")[2] + ".py" in tree


def test_nothing_names_a_machine_or_a_registry() -> None:
    # Spelled in halves, so that this file does not name them either.
    hosts = ("py" + "pi.org", "python" + "hosted", "/ro" + "ot/", "/wo" + "rk/")
    for path in [*ROOT.glob("*.*"), *(ROOT / "localllm").rglob("*.py"), *(ROOT / "models").glob("*.toml")]:
        assert not path.is_file() or not any(h in path.read_text(encoding="utf-8") for h in hosts), path
