"""A checkpoint's config.json under one set of names, whichever version of transformers wrote it.

Version 4 writes `torch_dtype`, `rope_theta` and `rope_scaling`; version 5 `dtype` and `rope_parameters`, the latter per
kind of layer where there are several. Every value comes from a stranger: types and ranges are checked where it is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from localllm.errors import BadModelFile

MAX_NUMBER = 1 << 31
MAX_LAYERS = 512


class Config:
    """Values by any of the names they go under. Raises BadModelFile where one is missing or absurd."""

    def __init__(self, table: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> None:
        text = table.get("text_config")
        self._raw = table
        self._table = {**_present(table), **_present(text if isinstance(text, dict) else {})}
        self._defaults = defaults or {}
        self._where = where

    def with_defaults(self, defaults: Mapping[str, Any]) -> Config:
        """The same, with what transformers takes for granted where the file is silent."""
        return Config(self._raw, self._where, defaults)

    @property
    def architecture(self) -> str:
        names = self._raw.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise self.bad("it names no architecture")
        return names[0]

    @property
    def runs_code(self) -> bool:
        """Whether transformers would run Python out of the checkpoint."""
        return bool(self._raw.get("auto_map"))

    @property
    def quantized(self) -> str:
        """How the weights are quantized; "" where they are not."""
        found = self._table.get("quantization_config")
        return str(found.get("quant_method", "?"))[:40] if isinstance(found, dict) else ""

    def get(self, *names: str) -> Any:
        """The first value among the names, unchecked; None without one. A default never stands before another name."""
        for table in (self._table, self._defaults):
            for name in names:
                if name in table:
                    return table[name]
        return None

    def has(self, *names: str) -> bool:
        return self.get(*names) is not None

    def integer(self, *names: str) -> int:
        value = self.get(*names)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_NUMBER:
            raise self.bad(f"its {names[0]} is {value!r:.40}")
        return value

    def size(self, *names: str) -> int:
        """An integer that is not 0."""
        value = self.integer(*names)
        if not value:
            raise self.bad(f"its {names[0]} is 0")
        return value

    def number(self, *names: str) -> float:
        return self.checked(names[0], self.get(*names))

    def checked(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e30 < value < 1e30:
            raise self.bad(f"its {name} is {value!r:.40}")
        return float(value)

    def numbers(self, name: str, values: Any, count: int) -> list[float]:
        if not isinstance(values, list) or len(values) != count:
            raise self.bad(f"its {name} has not {count} values")
        return [self.checked(name, value) for value in values]

    def flag(self, *names: str) -> bool:
        return bool(self.get(*names))

    def require(self, name: str, value: Any, allowed: Collection[Any], why: str) -> None:
        """Refuse what llama.cpp would compute differently, instead of converting it into a model that errs."""
        if value not in allowed:
            raise self.bad(f"its {name} is {value!r:.60}, and {why}")

    @property
    def layers(self) -> int:
        count = self.size("num_hidden_layers", "n_layer", "n_layers", "num_layers")
        if count > MAX_LAYERS:
            raise self.bad(f"it has {count} layers, and llama.cpp takes {MAX_LAYERS}")
        return count

    @property
    def hidden(self) -> int:
        return self.size("hidden_size", "n_embd", "d_model")

    @property
    def heads(self) -> int:
        return self.size("num_attention_heads", "n_head", "n_heads")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; as many as of queries where nothing is said."""
        names = ("num_key_value_heads", "n_kv_heads", "num_kv_heads")
        return self.size(*names) if self.has(*names) else self.heads

    @property
    def head(self) -> int:
        """Elements of a head."""
        return self.size("head_dim") if self.has("head_dim") else self.hidden // self.heads

    @property
    def rope(self) -> Rope:
        return Rope(self)

    def bad(self, reason: str) -> BadModelFile:
        return BadModelFile(f"{self._where} cannot be converted: {reason}")


class Rope:
    """How positions turn the queries and keys, from whichever of the two ways the configuration tells it.

    `kind` is "default", "linear", "yarn", "llama3", "longrope" or what else stands there; `get` reads its parameters.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        found = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(found, dict):
            raise config.bad(f"its rope_parameters are {found!r:.40}")
        by_kind = {key: value for key, value in found.items() if key.endswith("_attention") and isinstance(value, dict)}
        self._table: dict[str, Any] = by_kind.get("full_attention", {} if by_kind else found)
        self._local = by_kind.get("sliding_attention", {})

    def get(self, *names: str) -> Any:
        """A parameter, which older files keep beside the table instead of in it."""
        for table in (_present(self._table), self._config):
            value = next((v for v in (table.get(name) for name in names) if v is not None), None)
            if value is not None:
                return value
        return None

    def number(self, *names: str) -> float:
        return self._config.checked(names[0], self.get(*names))

    @property
    def kind(self) -> str:
        kind = str(self._table.get("rope_type") or self._table.get("type") or "default").lower()
        return "longrope" if kind == "su" else kind

    @property
    def theta(self) -> float | None:
        """The base of the frequencies; None where nothing is said."""
        value = self.get("rope_theta", "rotary_emb_base")
        return None if value is None else self._config.checked("rope_theta", value)

    @property
    def local_theta(self) -> float | None:
        """The base in layers with a sliding window, where they have their own."""
        value = self._local.get("rope_theta", self._config.get("rope_local_base_freq"))
        return None if value is None else self._config.checked("rope_theta", value)

    @property
    def partial(self) -> float:
        """The part of a head that turns."""
        value = self.get("partial_rotary_factor", "rotary_pct", "rope_pct")
        return 1.0 if value is None else self._config.checked("partial_rotary_factor", value)


def _present(table: Mapping[str, Any]) -> dict[str, Any]:
    """Without nulls: they mean that nothing is said."""
    return {key: value for key, value in table.items() if value is not None}
