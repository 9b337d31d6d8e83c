"""localllm: run quantized language models on your own machine.

From Python: `from localllm import load` (see `localllm.api`). It is imported when it is asked for, so that the command
line does not wait for it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localllm.api import Model, load

__all__ = ["Model", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in ("Model", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from localllm import api

    return getattr(api, name)
