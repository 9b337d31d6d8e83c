"""How long a server is waited for, and what is asked again."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from localllm.errors import Unreachable
from localllm.hub.remote import Later, persist, retry_after, seconds_to_wait


def test_retry_after() -> None:
    assert retry_after({"Retry-After": "7"}) == 7
    assert retry_after({"Retry-After": "0"}) == 0
    assert retry_after({"Retry-After": formatdate(0)}) == 0
    seconds = retry_after({"Retry-After": formatdate(time.time() + 100, usegmt=True)})
    assert seconds == pytest.approx(100, abs=5)


@pytest.mark.parametrize("header", ["", "soon", "-5", "1e9"])
def test_retry_after_of_nonsense(header: str) -> None:
    assert retry_after({"Retry-After": header}) is None


def test_each_wait_is_longer_until_it_is_enough() -> None:
    later = Later(Unreachable("down"))
    said: list[str] = []
    assert [seconds_to_wait(later, n, said.append) for n in range(1, 8)] == [1, 2, 4, 8, 16, 16, 16]
    assert said[0] == "down; again in 1 s"
    assert seconds_to_wait(Later(Unreachable("busy"), 30.0), 1, said.append) == 30
    with pytest.raises(Unreachable):
        seconds_to_wait(Later(Unreachable("busy"), 3600.0), 1, said.append)


def test_a_server_that_cannot_be_reached_is_asked_once() -> None:
    asked = []

    def ask() -> None:
        asked.append(1)
        raise Later(Unreachable("no route"), connected=False)

    with pytest.raises(Unreachable, match="no route"):
        persist(ask, lambda _: None)
    assert len(asked) == 1


def test_what_comes_at_the_third_time_is_the_answer() -> None:
    asked = []

    def ask() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise Later(Unreachable("busy"), 0.0)
        return "here"

    assert persist(ask, lambda _: None) == "here"
    asked.clear()
    with pytest.raises(Unreachable):
        persist(ask, lambda _: None, tries=2)
