"""Lines of Markdown -> blocks, one line at a time, remembering only what is open.

CommonMark's rules for what a line begins, with tables and strikethrough, and with the leniency that models need: a
fence inside of a list item need not be indented to its end, and two spaces nest a list below a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rich.cells import cell_len

from localllm.ui.markdown.code import Code
from localllm.ui.markdown.leaves import Heading, Leaf, Lines, Margin, Paragraph, Rule, Table, split_row

_QUOTE = re.compile(r" {0,3}> ?")
_ITEM = re.compile(r"( {0,3})([-*+]|\d{1,9}[.)])( +|$)")
_RULE = re.compile(r" {0,3}([-*_])[ ]*(\1[ ]*){2,}$")
_HEADING = re.compile(r" {0,3}(#{1,6})(?: +|$)(.*)$")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})(.*)$")
_UNDERLINE = re.compile(r" {0,3}(=+|-+) *$")
_SEPARATOR = re.compile(r" {0,3}\|? *:?-+:? *(\| *:?-+:? *)*\|? *$")
_UNDECIDED = re.compile(r"[ \t]*([-=*_+~`#>|: \t]*|\d{1,9}[.)]?)$")
_MATH = {"$$": "$$", "\\[": "\\]"}
_TASKS = {"[ ] ": "☐ ", "[x] ": "☑ ", "[X] ": "☑ "}


@dataclass(frozen=True, slots=True)
class _Container:
    """A quotation, or a list's item whose text stands `width` columns to the right of its surroundings."""

    mark: str
    width: int = 0
    fresh: bool = True  # nothing of it was drawn

    @property
    def is_quote(self) -> bool:
        return not self.width

    def first(self) -> str:
        return self.mark if self.is_quote or self.fresh else self.rest()

    def rest(self) -> str:
        return self.mark if self.is_quote else " " * cell_len(self.mark)


class Blocks:
    """Feed it complete lines with `line`; `take` gives the blocks that have ended, `leaf` is the one that is open."""

    def __init__(self) -> None:
        self.leaf: Leaf | None = None
        self._containers: list[_Container] = []
        self._ended: list[Leaf] = []
        self._closing = ""  # what ends the open fence
        self._indented = False  # whether the open code is one by indentation
        self._blank = False  # whether the last line was empty
        self._before: Leaf | None = None  # the block before the next one

    def fork(self) -> Blocks:
        """A copy that can grow apart."""
        twin = Blocks.__new__(Blocks)
        twin.__dict__.update(self.__dict__)
        twin.leaf = self.leaf.fork() if self.leaf else None
        twin._containers, twin._ended = [*self._containers], []
        return twin

    def is_undecided(self, beginning: str) -> bool:
        """Whether the beginning of a line may turn out to be something that is not shown as it stands."""
        if self._closing:
            return bool(beginning.strip()) and self._closing.startswith(beginning.strip())
        return bool(_UNDECIDED.match(beginning))

    def take(self) -> list[Leaf]:
        ended, self._ended = self._ended, []
        return ended

    def end(self) -> None:
        """Nothing follows."""
        self._close_leaf()
        self._pop_to(0)

    def line(self, text: str) -> None:
        lead = len(text) - len(text.lstrip(" \t"))
        rest = text[:lead].expandtabs(4) + text[lead:]
        matched, rest = self._match(rest)
        if self._closing and matched == len(self._containers):
            self._fence_line(rest)
            return
        if not rest.strip():
            self._empty_line(matched)
            return
        if matched < len(self._containers):
            if isinstance(self.leaf, Paragraph) and not self._begins_block(rest):
                self.leaf.add(rest.strip())  # a paragraph goes on though its marks are missing
                return
            self._close_leaf()
            self._pop_to(matched)
        rest = self._open_containers(rest)
        self._leaf_line(rest)
        if rest.strip():
            self._blank = False

    def _match(self, rest: str) -> tuple[int, str]:
        """How many of the open containers the line stands in, and what of it is inside."""
        for number, container in enumerate(self._containers):
            indent = len(rest) - len(rest.lstrip(" "))
            if container.is_quote:
                mark = _QUOTE.match(rest)
                if mark is None:
                    return number, rest
                rest = rest[mark.end() :]
            elif self._closing:
                rest = rest[min(indent, container.width) :]
            elif not rest.strip() or indent >= container.width:
                rest = rest[container.width :]
            elif indent >= 2 and _ITEM.match(rest.lstrip(" ")):
                rest = rest.lstrip(" ")
            else:
                return number, rest
        return len(self._containers), rest

    def _begins_block(self, rest: str) -> bool:
        return any(p.match(rest) for p in (_QUOTE, _RULE, _HEADING, _FENCE)) or self._item(rest) is not None

    def _item(self, rest: str) -> re.Match[str] | None:
        """The mark of a list's item. A paragraph is interrupted by a number only where a list begins, with 1."""
        match = _ITEM.match(rest)
        if match is None or _RULE.match(rest):
            return None
        interrupts = rest[match.end() :].strip() and (not match[2][0].isdigit() or match[2][:-1] == "1")
        if isinstance(self.leaf, Paragraph) and not self._containers and not interrupts:
            return None
        return match

    def _open_containers(self, rest: str) -> str:
        while True:
            if self._indented and rest.startswith("    "):
                return rest
            if mark := _QUOTE.match(rest):
                container, inside = _Container("▌ "), rest[mark.end() :]
            elif match := self._item(rest):
                bullet = f" {match[2]} " if match[2][0].isdigit() else " • "
                spaces = len(match[3]) if 0 < len(match[3]) < 5 else 1
                container = _Container(bullet, len(match[1] + match[2]) + spaces)
                inside = rest[container.width :]
                for source, shown in _TASKS.items():
                    inside = shown + inside[4:] if inside.startswith(source) else inside
            else:
                return rest
            self._close_leaf()
            self._containers.append(container)
            rest = inside

    def _leaf_line(self, rest: str) -> None:
        leaf = self.leaf
        if self._indented and isinstance(leaf, Code):
            if rest.startswith("    "):
                if self._blank:
                    leaf.add("")
                leaf.add(rest[4:])
                return
            self._close_leaf()
        elif isinstance(leaf, Table) and "|" in rest and not self._begins_block(rest):
            leaf.add(rest)
            return
        elif isinstance(leaf, Paragraph) and self._goes_on(leaf, rest):
            return
        self._new_leaf(rest)

    def _goes_on(self, leaf: Paragraph, rest: str) -> bool:
        """Whether the line belongs to the open paragraph, or shows it to be something else."""
        before, _, last = leaf.text.rpartition("\n")
        if _SEPARATOR.match(rest) and "|" in last and len(split_row(last)) == len(split_row(rest)):
            self.leaf = Paragraph(leaf.margin, before) if before else None
            margin = self._margin(gap=True) if before else leaf.margin
            self._close_leaf()
            self.leaf = Table(margin, last, rest)
        elif (mark := _UNDERLINE.match(rest)) and last and not before:
            self.leaf = Heading(leaf.margin, 1 if mark[1][0] == "=" else 2, leaf.text)
            self._close_leaf()
        elif self._begins_block(rest) or rest.strip() in _MATH:
            return False
        else:
            leaf.add(rest.strip() + ("  " if rest.endswith("  ") else ""))
        return True

    def _new_leaf(self, rest: str) -> None:
        self._close_leaf()
        stripped = rest.strip()
        if not stripped:
            return
        if match := _FENCE.match(rest):
            self._closing = match[1]
            self.leaf = Code(self._margin(gap=True), match[2])
        elif stripped in _MATH:
            self._closing = _MATH[stripped]
            self.leaf = Code(self._margin(gap=True), "tex")
        elif _RULE.match(rest):
            self.leaf = Rule(self._margin(gap=True))
        elif match := _HEADING.match(rest):
            self.leaf = Heading(self._margin(gap=True), len(match[1]), match[2])
        elif rest.startswith("    "):
            self._indented = True
            self.leaf = Code(self._margin(gap=True))
            self.leaf.add(rest[4:])
        else:
            after_block = not isinstance(self._before, (Paragraph, Lines, type(None)))
            self.leaf = Paragraph(self._margin(gap=after_block), stripped + ("  " if rest.endswith("  ") else ""))

    def _fence_line(self, rest: str) -> None:
        assert isinstance(self.leaf, Code)
        closing, bare = self._closing, rest.strip()
        if bare.startswith(closing) and not bare.strip(closing[0] if closing[0] in "`~" else closing):
            self._close_leaf()
        else:
            self.leaf.add(rest)

    def _empty_line(self, matched: int) -> None:
        while matched < len(self._containers):  # a quotation ends where its mark is missing; a list may go on
            self._close_leaf()
            self._pop_to(matched)
        self._blank = True
        if not self._indented:
            self._close_leaf()

    def _close_leaf(self) -> None:
        if self.leaf is not None:
            self._ended.append(self.leaf)
            self._before = self.leaf
        self.leaf, self._closing, self._indented = None, "", False

    def _pop_to(self, count: int) -> None:
        while len(self._containers) > count:
            if self._containers[-1].fresh:
                self._ended.append(Lines(self._margin(gap=False)))
                self._before = self._ended[-1]
            self._containers.pop()

    def _margin(self, gap: bool) -> Margin:
        """The margin of a block that begins here; an empty row stands above it where the source has one."""
        first = "".join(c.first() for c in self._containers)
        rest = "".join(c.rest() for c in self._containers)
        above: tuple[str, ...] = ()
        fresh = any(c.fresh for c in self._containers)
        if self._before is not None and (self._blank or (gap and not fresh)):
            outside = [c.rest() for c in self._containers if not c.fresh]
            above = ("".join(outside).rstrip(),)
        self._containers = [replace(c, fresh=False) for c in self._containers]
        return Margin(first, rest, above)
