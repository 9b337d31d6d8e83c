"""What the user has set: defaults < the model's own advice < settings file < environment < command line.

The settings file is TOML: options stand at its top by their names (`temperature = 0.2`, `threads = 4`), and `model`
names the model that is used when none is named; a table `[models."qwen3:4b"]` has the options of one model. In the
environment they are `LOCALLLM_TEMPERATURE` and so on, for every model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from localllm.errors import UsageError
from localllm.fields import Option, options
from localllm.types import CacheOptions, ChatOptions, EngineOptions, Guessing, Keeping, Limits, Reasoning, Sampling

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OPTION_CLASSES = (Sampling, Limits, Reasoning, Keeping, ChatOptions, EngineOptions, CacheOptions, Guessing)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """`model` is the default model's name, or None. The others are the options that were set, by name.

    `file` are those at the top of the settings file, `models` its tables of models (their names in lower case).
    """

    model: str | None
    file: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, Any]

    @property
    def given(self) -> Mapping[str, Any]:
        """What was set for every model."""
        return {**self.file, **self.environment}

    def of(self, *names: str | None) -> Mapping[str, Any]:
        """What was set for a model that goes by these names, the later ones winning.

        A file has its section under its whole path, however that is written here.
        """
        spelled = [spelling for name in names if name for spelling in (absolute(name), name)]
        sections = [self.models.get(name.lower(), {}) for name in spelled]
        return {**self.file, **{k: v for section in sections for k, v in section.items()}, **self.environment}


def absolute(path: str) -> str:
    """The path from the root, without links."""
    return str(Path(path).expanduser().resolve())


def settings_file() -> Path:
    """`LOCALLLM_CONFIG`, or the platform's place for settings."""
    if chosen := os.environ.get("LOCALLLM_CONFIG"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir("localllm", appauthor=False)) / "config.toml"


def load_settings() -> Settings:
    """Read the file and the environment; raises UsageError, naming the place, where a value makes no sense."""
    file = _from_file(settings_file())
    model, models = file.pop("model", None), file.pop("models", {})
    environment = {
        name: _named(option.environment, option, option.parse, text)
        for name, option in all_options().items()
        if (text := os.environ.get(option.environment))
    }
    return Settings(os.environ.get("LOCALLLM_MODEL") or model, file, models, environment)


def model_sections(text: str) -> list[str]:
    """The models that have a section in a settings file, as it writes them; the file is as it should be."""
    return list(tomllib.loads(text).get("models", {}))


def all_options() -> dict[str, Option]:
    """Every option that can be set for a model, by name."""
    return {name: option for cls in OPTION_CLASSES for name, option in options(cls).items()}


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
    if isinstance(models := table.pop("models", {}), dict):
        models = {name.lower(): _checked(f'{path}: models."{name}"', section) for name, section in models.items()}
    else:
        raise UsageError(f"{path}: models is no table", 'a model has its options in a table [models."NAME"]')
    model = {"model": table.pop("model")} if isinstance(table.get("model"), str) else {}
    return {**_checked(str(path), table), **model, "models": models}


def _checked(place: str, table: Any) -> dict[str, Any]:
    """The options of a table. Raises UsageError for one that is none, or a value that makes no sense."""
    if not isinstance(table, dict):
        raise UsageError(f"{place} is no table", 'a model has its options in a table [models."NAME"]')
    known = all_options()
    found = {}
    for name, value in table.items():
        if name not in known:
            raise UsageError(f"{place}: there is no setting {name!r}", "`localllm config list --all` lists them")
        many = known[name].many and isinstance(value, known[name].type)  # `stop = "END"` is one text
        found[name] = tuple(value) if isinstance(value, list) else (value,) if many else value
        _named(f"{place}: {name}", known[name], known[name].check, found[name])
    return found


def _named(place: str, option: Any, function: Any, value: Any) -> Any:
    try:
        return function(value)
    except (UsageError, TypeError) as error:
        raise UsageError(f"{place}: {str(error).removeprefix(option.flag + ': ')}") from None
