"""What the user has set: defaults < the model's own advice < settings file < environment < command line.

The settings file is TOML: options stand at its top by their names (`temperature = 0.2`, `threads = 4`), and `model`
names the model that is used when none is named. In the environment they are `LOCALLLM_TEMPERATURE` and so on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from localllm.errors import UsageError
from localllm.fields import options
from localllm.types import CacheOptions, EngineOptions, Keeping, Limits, Reasoning, Sampling

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OPTION_CLASSES = (Sampling, Limits, Reasoning, Keeping, EngineOptions, CacheOptions)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """`model` is the default model's name, or None; `given` the options that were set, by name."""

    model: str | None
    given: Mapping[str, Any]


def settings_file() -> Path:
    """`LOCALLLM_CONFIG`, or the platform's place for settings."""
    if chosen := os.environ.get("LOCALLLM_CONFIG"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir("localllm", appauthor=False)) / "config.toml"


def load_settings() -> Settings:
    """Read the file and the environment; raises UsageError, naming the place, where a value makes no sense."""
    given = _from_file(settings_file())
    model = given.pop("model", None)
    for cls in OPTION_CLASSES:
        for name, option in options(cls).items():
            if text := os.environ.get(option.environment):
                given[name] = _named(option.environment, option, option.parse, text)
    return Settings(os.environ.get("LOCALLLM_MODEL") or model, given)


def build(cls: type[T], *layers: Mapping[str, Any]) -> T:
    """An instance of an option class from layers of values by name, the later ones winning; other names are ignored."""
    known = options(cls)
    merged = {name: value for layer in layers for name, value in layer.items() if name in known}
    return cls(**merged)


def _from_file(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}", "mend the file, or move it away") from None
    known = {name: option for cls in OPTION_CLASSES for name, option in options(cls).items()}
    for name, value in table.items():
        if name == "model" and isinstance(value, str):
            continue
        if name not in known:
            raise UsageError(f"{path}: there is no setting {name!r}", "`localllm run --help` lists them")
        table[name] = tuple(value) if isinstance(value, list) else value
        _named(str(path), known[name], known[name].check, table[name])
    return table


def _named(place: str, option: Any, function: Any, value: Any) -> Any:
    try:
        return function(value)
    except (UsageError, TypeError) as error:
        raise UsageError(f"{place}: {str(error).removeprefix(option.flag + ': ')}") from None
