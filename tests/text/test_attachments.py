"""Files that go with a question: what is text is told, what is not is refused in a line."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from localllm.errors import UsageError
from localllm.text import attachments
from localllm.text.attachments import Attachment, attach, mentions, mistyped, with_attachments


def pdf(content: bytes, *, page: bytes = b"", extra: str = "") -> bytes:
    """A PDF of one page that shows a compressed stream of drawing operators."""
    packed = zlib.compress(content)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        page or b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>",
        b"<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream" % (len(packed), packed),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj%s endobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"xref\n0 6\n0000000000 65535 f \n%strailer<</Size 6/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF"
    return out + trailer % (table, extra.encode(), len(out))


HELLO = b"BT /F 12 Tf 10 100 Td (Hello from page one) Tj ET"


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        attach([str(path)])
    text = str(caught.value)
    assert "\n" not in text and len(text) < 700
    return text


def test_text_of_every_kind(tmp_path: Path) -> None:
    for name, data in {
        "utf8": "Grüße\n".encode(),
        "mark": "\ufeffGrüße\n".encode(),
        "utf16": "Grüße\n".encode("utf-16"),
        "windows": "Grüße\r\n".encode(),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert attach([str(tmp_path / name)]) == (Attachment(str(tmp_path / name), "Grüße\n"),)
    (tmp_path / "empty").touch()
    assert attach([str(tmp_path / "empty")])[0].text == ""


def test_globs_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "odd[1].txt"):
        (tmp_path / name).write_text(name)
    assert [a.name for a in attach(["*.txt"])] == ["a.txt", "b.txt", "odd[1].txt"]
    assert [a.name for a in attach(["**/*.txt", "a.txt"])] == ["a.txt", "b.txt", "deep/er/c.txt", "odd[1].txt"]
    assert attach(["odd[1].txt"])[0].text == "odd[1].txt"
    assert attach(["~/a.txt"])[0].name == str(tmp_path / "a.txt")
    with pytest.raises(UsageError, match=r"no file is called \*\.md"):
        attach(["*.md"])


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\x7fELF\x02\x01\xff\xfe")
    assert "is not text (byte 0xff at 6 is not UTF-8)" in refused(tmp_path / "binary")
    (tmp_path / "zeros").write_bytes(b"a\0b")
    assert "holds zeros" in refused(tmp_path / "zeros")
    assert "is a folder" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "missing")
    assert "no file that has an end" in refused(Path("/dev/zero"))
    assert "cannot be read" in refused(Path("a\0b"))
    with (tmp_path / "big").open("wb") as file:
        file.truncate(attachments.MAX_TEXT + 1)
    assert "larger than 16 MB" in refused(tmp_path / "big")


def test_a_pipe_is_a_file(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    os.close(writer)
    try:
        assert attach([f"/dev/fd/{reader}"])[0].text == "from a pipe"
    finally:
        os.close(reader)


def test_mentions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "with space.md", "b.py"):
        (tmp_path / name).touch()
    text = 'See @a.txt, @"with space.md" and (@b.py) me@a.txt @nobody @*.py? @'
    assert mentions(text) == ["a.txt", "with space.md", "*.py"]
    assert mentions("@a\0b @" + "x" * 5000) == []
    assert mistyped(text + " @none.txt, @no/such @a.txt @app.task @nobody") == ["none.txt", "no/such"]


def test_fences_are_longer_than_what_they_hold() -> None:
    told = with_attachments("Q", (Attachment("x", "a ```` b"), Attachment("y", "plain\n")))
    assert told == "x:\n`````\na ```` b\n`````\n\ny:\n```\nplain\n```\n\nQ"


def test_pdf(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(HELLO))
    assert attach([str(tmp_path / "a.pdf")])[0].text.strip() == "Hello from page one"


@pytest.mark.slow
def test_hostile_pdf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "PDF_SECONDS", 6.0)
    path = tmp_path / "h.pdf"
    whole = pdf(HELLO)
    for data, reason in (
        (pdf(b""), "holds no text"),
        (whole[:60], "cannot be read"),
        (b"%PDF-1.7\n" + os.urandom(5000), "cannot be read"),
        (pdf(HELLO, page=b"<</Type/Pages/Kids[2 0 R]/Count 1>>"), "cannot be read|holds no text"),
        (pdf(HELLO * (8 << 14)), "cannot be read|within 6 seconds"),
        (pdf(b" " * (1 << 29)), "cannot be read|holds no text"),
    ):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=reason):
            attach([str(path)])
