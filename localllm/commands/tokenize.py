"""`localllm tokenize`: what a text is to a model. No weights are read."""

from __future__ import annotations

import sys
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from localllm.commands._input import read_whole
from localllm.commands._options import JsonOption, ModelOption, SystemOption, YesOption, require_text
from localllm.errors import UsageError
from localllm.settings import load_settings
from localllm.types import Message

WordsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL TEXT", help="The first word is the model if it is one; the rest is the text."),
]
FileOption = Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from a file; - is stdin.")]
ChatOption = Annotated[bool, typer.Option("--chat", help="Put the text through the chat template, as a user's.")]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", help="With --chat: auto, none, a built-in name, or a Jinja file."),
]


def tokenize(
    words: WordsArgument = None,
    model: ModelOption = None,
    file: FileOption = None,
    count: Annotated[bool, typer.Option("--count", help="Print the number of tokens and nothing else.")] = False,
    chat: ChatOption = False,
    system: SystemOption = None,
    template: TemplateOption = None,
    no_special: Annotated[
        bool, typer.Option("--no-special", help="Add no begin or end token, and read <|...|> as plain text.")
    ] = False,
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """Show a text as the tokens a model reads: ids, pieces, bytes, and how many."""
    from localllm.commands._model import resolve, split_words
    from localllm.engines import open_tokenizer
    from localllm.ui import tokens
    from localllm.ui.progress import say

    require_chat(chat, system, template is not None)
    require_text((words, system))
    name, text = split_words(words or [], model)
    text = read_text(text, file)
    path = resolve(name or load_settings().model, yes=yes).path
    with closing(open_tokenizer(path, (template or "auto") if chat else "none")) as prompter:
        for notice in prompter.notices if chat else ():
            say(f"localllm: {notice}")
        messages = conversation(text, system)
        rendered = prompter.prompt(messages) if chat else None
        if no_special:
            found = prompter.vocabulary.tokenize(rendered or text, begin=False, special=False)
        elif chat:
            found = prompter.tokens(messages)
        else:
            found = prompter.vocabulary.tokenize(text, begin=True)
        if count:
            print(len(found))
        elif as_json:
            tokens.write_json(found, prompter.vocabulary, rendered)
        else:
            tokens.show(found, prompter.vocabulary)


def require_chat(chat: bool, system: str | None, template: bool) -> None:
    """Raises UsageError where a system prompt or a template is named that nothing would be put through."""
    if not chat and (system is not None or template):
        raise UsageError(f"{'--template' if template else '--system'} is of a chat", "add --chat")


def conversation(text: str, system: str | None) -> tuple[Message, ...]:
    """A user's text as messages for a template."""
    first = (Message("system", system),) if system else ()
    return (*first, Message("user", text))


def read_text(text: str, file: Path | None) -> str:
    """The text that is meant, to the byte: the words', a file's, or standard input's.

    Raises UsageError, also where it is larger than 16 MB: a token of it takes some 100 bytes of memory.
    """
    if text and file:
        raise UsageError(f"a text and --file {file}: which of them?", "leave one out")
    if text:
        return text
    if file is None and sys.stdin.isatty():
        raise UsageError("there is no text", "write it after the command, name a --file, or pipe it in")
    place = "standard input" if file is None or str(file) == "-" else str(file)
    try:
        with nullcontext(sys.stdin.buffer) if place == "standard input" else Path(place).open("rb") as source:
            return read_whole(source, place)
    except OSError as error:
        raise UsageError(f"--file {file} cannot be read: {error.strerror}") from None
