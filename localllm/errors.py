"""The errors a user can meet, and what each asks of him.

Every error is one line that names the thing, a hint that names the way out, and an exit code; `cli.py` is the only
place that prints them. Exceptions of libraries are turned into these where the library is called.

    LocalLLMError            1
    ├── UsageError           2    the command line or a setting cannot be understood
    ├── ModelNotFound        3    no such file, catalogue name or installed model
    ├── DownloadError        1
    │   ├── Unreachable      1    the source did not answer; the next source is tried
    │   └── ChecksumMismatch 1    the bytes are not the ones that were promised
    ├── BadModelFile         1    not the format it claims, truncated, or hostile
    ├── EngineError          1    the native library refused, with the reason it logged
    │   ├── NotNumbers       1    NaN where a probability was due: damaged weights
    │   ├── UnknownArchitecture 1
    │   └── OutOfMemory      1
    ├── TemplateError        1    a chat template failed, or broke a bound
    ├── ContextOverflow      4    the prompt is longer than the context
    ├── HistoryError         1    the file of conversations cannot be used; a chat goes on without it
    ├── ConstraintError      5    the answer is not what was asked for: cut by a limit, or out of its form
    └── TimedOut             124  --timeout has passed

Without an error of this tree a process ends with 130 after Ctrl-C, 143 after SIGTERM (`signals.py`), and 141 when
whoever read its output has gone.
"""

from __future__ import annotations

SUCCESS = 0
FAILURE = 1
USAGE = 2
MODEL_NOT_FOUND = 3
CONTEXT_OVERFLOW = 4
CONSTRAINT = 5
TIMEOUT = 124
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143


class LocalLLMError(Exception):
    """An error with a hint (the next thing to type) and the process's exit code."""

    exit_code = FAILURE
    hint = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint or self.hint


class UsageError(LocalLLMError):
    exit_code = USAGE


class ModelNotFound(LocalLLMError):
    exit_code = MODEL_NOT_FOUND
    hint = "`localllm models` lists the names that are known"


class DownloadError(LocalLLMError):
    hint = "try again: it goes on where it stopped"


class Unreachable(DownloadError):
    hint = "check the network, or name a .gguf file that is already here"


class ChecksumMismatch(DownloadError):
    hint = "the file was removed; fetch it again, and if it happens twice, do not trust the source"


class BadModelFile(LocalLLMError):
    hint = "fetch the file again, or name another"


class EngineError(LocalLLMError):
    hint = "--verbose shows what the engine logged"


class NotNumbers(EngineError):
    """What a model computed is NaN or infinite, which would be written as an answer nobody meant."""

    def __init__(self) -> None:
        super().__init__("the model's results are not numbers", "its file may be damaged: localllm verify")


class UnknownArchitecture(EngineError):
    hint = "a newer llama-cpp-python may know it: pip install -U llama-cpp-python"


class OutOfMemory(EngineError):
    hint = "try a smaller --context, --cache-type-k q8_0 --cache-type-v q8_0, or a smaller quantization"


class TemplateError(LocalLLMError):
    hint = "--template chatml (or another name, or none) replaces the model's own"


class ContextOverflow(LocalLLMError):
    """The prompt does not fit: `needed` (the least there can be, if not `exact`) and `available` count tokens."""

    exit_code = CONTEXT_OVERFLOW

    def __init__(self, needed: int, available: int, limit: int, *, exact: bool = True) -> None:
        self.needed, self.available = needed, available
        if needed >= limit:
            hint = f"shorten it: the model was trained for {limit} tokens"
        elif exact:
            hint = f"--context {min(limit, needed + 1024)} would hold it (the model was trained for {limit})"
        else:
            hint = f"shorten it, or give it a larger --context: the model was trained for {limit}"
        about = "" if exact else "at least "
        super().__init__(f"the prompt is {about}{needed} tokens long and the context holds {available}", hint)


class HistoryError(LocalLLMError):
    hint = "--no-history goes without"


class ConstraintError(LocalLLMError):
    """The answer was written, and is not what was asked for."""

    exit_code = CONSTRAINT
    hint = "more --max-tokens, or a larger model, may bring it to its end"


class TimedOut(LocalLLMError):
    """`seconds` is what was allowed."""

    exit_code = TIMEOUT
    hint = "a larger --timeout gives it more"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not finished after {seconds:g} seconds")
