"""What `run` and `chat` share: settings, a model and an open engine."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.commands._model import Model, resolve
from localllm.commands._options import show_log
from localllm.engines import open_engine
from localllm.errors import UsageError
from localllm.protocols import Engine
from localllm.settings import build, load_settings
from localllm.types import CacheOptions, EngineOptions, Guessing, Limits, Reasoning, Sampling, Usage
from localllm.ui.progress import say


@dataclass(frozen=True, slots=True)
class Session:
    model: Model
    engine: Engine
    sampling: Sampling
    limits: Limits
    reasoning: Reasoning
    options: EngineOptions
    load_seconds: float

    @property
    def name(self) -> str:
        """The model, as it is found from another folder too."""
        return str(self.model.path.absolute()) if Path(self.model.name).exists() else self.model.name

    @property
    def path(self) -> Path:
        return self.model.path

    def report(self, usage: Usage) -> None:
        """Times and counts of an answer, on stderr."""
        prompt = usage.prompt_tokens - usage.reused_tokens
        sys.stderr.write(
            f"\nload {self.load_seconds:.2f} s; prompt {usage.prompt_tokens} tokens ({usage.reused_tokens} reused), "
            f"{prompt / max(usage.prompt_seconds, 1e-9):.0f} tokens/s; answer {usage.completion_tokens} tokens, "
            f"{usage.completion_tokens / max(usage.decode_seconds, 1e-9):.0f} tokens/s\n"
        )


def open_session(
    name: str | None,
    engine: str,
    *,
    yes: bool,
    verbose: bool,
    given: Mapping[str, Any],
    single: bool = False,
    advice: Mapping[str, Any] | None = None,
) -> Session:
    """Find the model, settle every option, and open the engine; its notices go to stderr.

    `advice` are options that a prompt recommends.
    """
    settings = load_settings()
    model = resolve(name or settings.model, yes=yes)
    own = settings.of(model.name, name or settings.model)
    show_log(verbose)
    layers = (model.sampling, advice or {}, own, given)
    sampling, limits, reasoning = build(Sampling, *layers), build(Limits, *layers), build(Reasoning, *layers)
    from localllm.engines.local import Prompter

    started = time.perf_counter()
    options = build(EngineOptions, model.options, own, given)
    opened = open_engine(engine, model.path, options, single=single)
    keep_prefixes(opened, model, build(CacheOptions, own, given))
    allow_guesses(opened, build(Guessing, own, given), options, yes=yes)
    unheeded = opened.unheeded(build(Reasoning, given)) if isinstance(opened, Prompter) else ()
    for notice in (*opened.notices, *unheeded):
        say(f"localllm: {notice}")
    return Session(model, opened, sampling, limits, reasoning, options, time.perf_counter() - started)


def prefix_folder() -> Path:
    """Where evaluated prompts are kept."""
    from localllm.hub.store import data_directory

    return data_directory() / "prefixes"


def keep_prefixes(engine: Engine, model: Model, options: CacheOptions) -> None:
    """Let an engine that can take up evaluated prompts from the disk do so."""
    model_of: Any = getattr(engine, "model", None)  # an Engine need not have one
    if options.no_cache or not options.cache_size or not hasattr(model_of, "prefixes"):
        return
    from localllm.engines.prefix_cache import PrefixCache
    from localllm.hub.digest import file_sha256, known_sha256

    def digest(compute: bool) -> str | None:
        return file_sha256(model.path) if compute else known_sha256(model.path)

    model_of.prefixes = PrefixCache(prefix_folder(), model.name, digest, int(options.cache_size * 1e9))


def allow_guesses(engine: Engine, guessing: Guessing, options: EngineOptions, *, yes: bool) -> None:
    """Let an engine that can check guesses do so. Raises UsageError where the draft model is none for it."""
    local: Any = engine  # where its model takes guesses
    allow = getattr(getattr(local, "model", None), "allow_guesses", None)
    if allow is None:
        if guessing.draft is not None:
            raise UsageError("--draft: this engine checks no guesses", "--engine llama.cpp does")
        return
    if guessing.draft is not None and guessing.speculate == "off":
        raise UsageError("--draft: --speculate off guesses nothing", "auto, exact and loose do")
    from localllm.engines.speculation import SIZES

    if guessing.speculate != "off":
        allow(SIZES[-1] - 1)
        local.exact = {"loose": False, "auto": None}.get(guessing.speculate, True)
    if guessing.draft is not None:
        from localllm.engines.llama_cpp import open_draft

        path = resolve(guessing.draft, yes=yes).path
        local.draft = open_draft(path, options, local.model)
