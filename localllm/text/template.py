"""Chat templates: messages -> prompt, as transformers renders them, with time, memory and output bounded.

A template comes out of a downloaded file and is a program, so it runs in a process of its own
(`template_worker.py`): Jinja's immutable sandbox keeps it from doing harm, the operating system's limits keep it from
taking the machine's memory, and a timer kills it when it does not end. The worker starts while the model loads, and
stays for the next turn.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from localllm.errors import TemplateError, UsageError
from localllm.text import bounded
from localllm.types import Message

RENDER_SECONDS = 1.5
START_SECONDS = 60.0
MEMORY_BYTES = 1 << 30

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Gemma has no system role: its own template puts that text before the first user message.
_GEMMA = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message.role == 'system' %}{% set ns.system = message.content ~ '\n\n' %}{% else %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else 'user' }}\n"
    "{{ ns.system }}{{ message.content | trim }}<end_of_turn>\n{% set ns.system = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message.role == 'system' %}{% set ns.system = message.content ~ '\n\n' %}"
    "{% elif message.role == 'user' %}[INST] {{ ns.system }}{{ message.content }} [/INST]{% set ns.system = '' %}"
    "{% else %}{{ message.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
_ZEPHYR = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# name -> the template, and the special token by which a vocabulary shows that it was trained with it.
BUILT_IN = {
    "chatml": (_CHATML, "<|im_start|>"),
    "llama3": (_LLAMA3, "<|start_header_id|>"),
    "gemma": (_GEMMA, "<start_of_turn>"),
    "mistral": (_MISTRAL, "[INST]"),
    "zephyr": (_ZEPHYR, "<|assistant|>"),
}


def template_source(option: str, own: str | None, is_chat_model: bool, vocabulary: Any) -> tuple[str | None, str]:
    """Choose a template: its source (None for plain completion) and what the user should know about the choice.

    `option` is what the user asked for, `own` the template in the model's metadata, `vocabulary` tells by `in` whether
    a token exists.
    """
    if option == "none":
        return None, ""
    if option in BUILT_IN:
        return BUILT_IN[option][0], ""
    if option != "auto":
        try:
            return Path(option).read_text(encoding="utf-8"), ""
        except (OSError, UnicodeDecodeError) as error:
            names = ", ".join(["auto", "none", *BUILT_IN])
            raise UsageError(
                f"--template {option}: no such name and no readable file ({error})", f"names: {names}"
            ) from None
    if own:
        return own, ""
    if is_chat_model:
        for name, (source, marker) in BUILT_IN.items():
            if marker in vocabulary:
                return source, f"the model has no chat template; using the built-in one named {name}"
    return None, "the model has no chat template; completing the text as it stands"


class ChatTemplate:
    """A template ready to render; `close()` it when done. One that broke a bound gets a new worker when next used."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._process: subprocess.Popen[str] | None = None
        self._start()

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        """The prompt's text up to where the answer begins; `variables` are the special tokens and whatever else the
        template may read. Raises TemplateError when the template raises, or breaks a bound."""
        context = {
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
            **variables,
        }
        reply = self._ask({"source": self.source, "context": context})
        if "error" in reply:
            raise TemplateError(f"the chat template failed: {reply['error']}")
        return str(reply["text"])

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _start(self) -> None:
        # A session of its own keeps a Ctrl-C at the terminal for the program alone.
        self._process = subprocess.Popen(
            bounded.command(Path(__file__).with_name("template_worker.py"), MEMORY_BYTES),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._ready = False

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._start()
        if not self._ready:
            self._ready = bool(self._within(START_SECONDS, ""))
        line = self._within(RENDER_SECONDS, json.dumps(question) + "\n")
        if not line:
            self.close()
            raise TemplateError(
                f"the chat template did not end within {RENDER_SECONDS:g} seconds and {MEMORY_BYTES >> 20} MiB"
            )
        return dict(json.loads(line))

    def _within(self, seconds: float, line: str) -> str:
        """Send a line and wait for one, or for the worker's end, which comes after `seconds` at the latest."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            return process.stdout.readline()
        except OSError:
            return ""  # the worker has gone
        finally:
            timer.cancel()
            timer.join()
