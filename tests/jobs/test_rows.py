"""Rows: every format, every kind of damage, and files that go on where a killed run stopped."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from localllm.errors import UsageError
from localllm.jobs.rows import Errors, Format, Output, Row, format_of, key_of, open_input, pending, read_rows


def read(data: bytes, kind: Format, tmp_path: Path) -> list[Row]:
    path = tmp_path / "in"
    path.write_bytes(data)
    with open_input(path) as file:
        return list(read_rows(file, kind))


def test_lines(tmp_path: Path) -> None:
    rows = read("\ufeffGrüße\r\n\n  two \nthree".encode(), "lines", tmp_path)
    assert [(r.id, r.fields["text"]) for r in rows] == [(1, "Grüße"), (3, "  two "), (4, "three")]


def test_jsonl(tmp_path: Path) -> None:
    rows = read(b'{"id": "a", "x": 1}\n\n{"y": [2]}\n{"id": 7}', "jsonl", tmp_path)
    assert [(r.id, dict(r.fields)) for r in rows] == [("a", {"id": "a", "x": 1}), (3, {"y": [2]}), (7, {"id": 7})]


@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_csv(comma: str, tmp_path: Path) -> None:
    text = f'id{comma}text\nk1{comma}"two\nlines{comma} ""quoted"""\n\nk2{comma}{"long" * 50_000}\n'
    rows = read(text.encode(), "csv", tmp_path)
    assert [r.id for r in rows] == ["k1", "k2"]
    assert rows[0].fields["text"] == f'two\nlines{comma} "quoted"'
    assert len(rows[1].fields["text"]) == 200_000


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"id": true}', "neither a text nor a whole number"),
        (b'{"id": [1]}', "neither a text nor a whole number"),
        (b'{"x": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (rb'{"x": "\ud800"}', "half of a surrogate pair"),
        (b'{"id": 1}', "is the one of row 1 already"),
    ],
)
def test_a_bad_row_is_told_and_the_others_live(line: bytes, fault: str, tmp_path: Path) -> None:
    first, bad, last = read(b'{"id": 1}\n' + line + b'\n{"id": 9}\n', "jsonl", tmp_path)
    assert (first.id, last.id, bad.id) == (1, 9, 2)
    assert fault in bad.fault
    assert not bad.fields


def test_a_bad_csv(tmp_path: Path) -> None:
    short, long, strange = read(b"a,b\n1\n1,2,3\n\xff,2\n", "csv", tmp_path)
    assert dict(short.fields) == {"a": "1"}
    assert "3 cells" in long.fault
    assert "not UTF-8" in strange.fault
    for head in (b"", b"a,a\n1,2\n", b"a,,b\n"):
        with pytest.raises(UsageError, match="does not name its columns"):
            read(head, "csv", tmp_path)


def test_the_format_by_name() -> None:
    assert [format_of(Path(n)) for n in ("a.JSONL", "a.tsv", "a.txt", "-")] == ["jsonl", "csv", "lines", "lines"]
    assert format_of(Path("a.txt"), "csv") == "csv"
    with pytest.raises(UsageError, match="the formats are"):
        format_of(Path("a.txt"), "xml")


def test_no_input(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            open_input(path)


ROWS = [Row(i, {"text": f"{i}"}) for i in range(1, 6)]


def key(row: Row) -> str:
    return key_of("job", dict(row.fields))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_results_come_in_the_order_of_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Output(path) as output:
        tasks = list(pending(ROWS, output, key))
        for row, made in reversed(tasks[1:]):
            output.write(row, made, {"text": "ü"})
        assert lines(path) == []
        output.drop(ROWS[0])
        assert [r["id"] for r in lines(path)] == [2, 3, 4, 5]
    assert list(tmp_path.iterdir()) == [path]


def test_a_bad_line_is_not_the_row_of_its_number(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    rows = [Row(0, {"text": "a"}), Row(2, fault="bad"), Row(2, {"text": "b"}), Row(3, {"text": "c"})]
    for _ in range(2):  # the second time it is as little the row that is done
        with Output(path) as output:
            for row, made in pending(rows, output, key):
                if row.fault:
                    output.drop(row)
                else:
                    output.write(row, made, {})
        assert [r["id"] for r in lines(path)] == [0, 2, 3]
    assert output.written == 0


def test_it_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Output(path) as output:
        for row, made in pending(ROWS[:3], output, key):
            output.write(row, made, {"text": "x" * 50})
    whole = path.read_bytes()
    torn = [*range(60), len(whole) - 1, len(whole)]
    for length in torn:
        path.write_bytes(whole[:length])
        with Output(path) as output:
            for row, made in pending(ROWS, output, key):
                output.write(row, made, {"text": "x" * 50})
        assert [r["id"] for r in lines(path)] == [1, 2, 3, 4, 5], length


def test_another_job_or_input_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Output(path) as output:
        for row, made in pending(ROWS, output, key):
            output.write(row, made, {})
    before = path.read_bytes()
    changed = [*ROWS[:2], Row(3, {"text": "another"})]
    with Output(path) as output, pytest.raises(UsageError, match="row 3 was made from another input"):
        list(pending(changed, output, key))
    with Output(path) as output:
        ((row, _),) = pending([*ROWS, Row(6, {"text": "6"})], output, key)
        assert row.id == 6
        output.drop(row)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"a\nb\n",
        b'{"id": 1}\n',
        b"\x00\xff\n",
        b'{"id": 1, "key": "k"}\nhello\n',
        b'{"id": 1, "text": "the only row"}',
        b'{"id": 1, "text": "the only',
        b'{"id": "a", "key": "mine", "text": "x"}',
        b'{"id": 1, "key": "k"}\n{"id": 2}',
    ],
)
def test_a_foreign_file_is_not_touched(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not the output of an earlier run"), Output(path):
        pass
    with pytest.raises(UsageError, match="no list of failed rows"):
        Errors(path)
    assert path.read_bytes() == content


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Output(path), pytest.raises(UsageError, match="another process"), Output(path):
        pass


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "out", tmp_path):
        with pytest.raises(UsageError, match="no folder|cannot be written"), Output(path):
            pass


def test_a_full_disk_is_named() -> None:
    with pytest.raises(OSError) as caught, Output(Path("/dev/full")) as output:
        for row, made in pending(ROWS[:1], output, key):
            output.write(row, made, {})
    assert caught.value.filename == "/dev/full"


def test_a_stream(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with Output(None, stream) as output:
        for row, made in pending(ROWS[:1], output, key):
            output.write(row, made, {"text": "\ud800"})
    assert json.loads(stream.getvalue())["text"] == "?"
    with Output(Path("/dev/null")) as output:
        for row, made in pending(ROWS[:1], output, key):
            output.write(row, made, {})


def test_errors_are_those_of_this_run(tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    for text in ("first", "second"):
        with Errors(path) as errors:
            errors.add(Row(2, {"a": "ü"}), text)
        assert lines(path) == [{"id": 2, "error": text, "row": {"a": "ü"}}]
