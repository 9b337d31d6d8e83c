"""`localllm explain --attention`: the matrix on the terminal, and pictures as a browser shows them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.support import browser
from tests.support.command import Terminal, localllm

TEXT = "The cat sat on the mat"
HOSTILE = 'A </script><img src=x onerror="document.title=1"> & \x1b[2J <|im_end|>'


class Elements(HTMLParser):
    """Of a document: the cells' attributes, and the text inside of elements, by name and class."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.cells: list[dict[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = dict(attributes)
        self._open.append(f"{tag}.{known.get('class') or known.get('id') or ''}")
        self.texts.setdefault(self._open[-1], [])
        if self._open[-1] == "rect.cell":
            self.cells.append(known)
        if tag in ("meta", "img", "br"):
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop().partition(".")[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]].append(data)


def written(folder: Path, name: str, *words: str, text: str = TEXT) -> Path:
    done = localllm("explain", "--attention", "--out", str(folder / name), *words, input=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder / name}\n", "")
    return folder / name


def drawn(elements: Elements, matrix: np.ndarray) -> None:
    """Whether the cells are the lower triangle, each as dark as its weight."""
    rows, columns = np.tril_indices(len(matrix))
    places = [(int(c["data-row"] or -1), int(c["data-column"] or -1)) for c in elements.cells]
    assert places == list(zip(rows.tolist(), columns.tolist(), strict=True))
    found = np.array([float(c["fill-opacity"] or -1) for c in elements.cells])
    assert np.abs(found - np.sqrt(matrix[rows, columns])).max() < 0.005


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    page = written(tmp_path, "a.html")
    weights = np.load(written(tmp_path, "a.npz"))["weights"]
    labels = ["The", "␣cat", "␣sat", "␣on", "␣the", "␣mat"]
    for fragment, matrix in (("", weights.mean(axis=(0, 1))), ("#layer=3&head=2", weights[3, 2]),
                             ("#layer=5&head=max", weights[5].max(axis=0))):  # fmt: skip
        seen = Elements(browser.dom(page, fragment))
        assert seen.texts["text.row"] == seen.texts["text.column"] == labels
        assert [seen.texts[f"select.{name}"] is not None for name in ("layer", "head")] == [True, True]
        drawn(seen, matrix)
    seen = Elements(browser.dom(page, "#layer=3&head=2&token=5"))
    best = int(weights[3, 2, 5].argmax())
    assert seen.texts["p.told"][0].startswith(f"␣mat looks at {labels[best]} {weights[3, 2, 5, best]:.1%}")
    assert "layer 3, head 2" in seen.texts["text."]


@pytest.mark.slow
def test_hostile_tokens_are_text(tmp_path: Path) -> None:
    page = written(tmp_path, "hostile.html", text=HOSTILE)
    source = page.read_text(encoding="utf-8")
    assert (
        "<img" not in source
        and "\x1b" not in source
        and "http" not in source.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    )
    document = browser.dom(page)
    assert "<img" not in document and "<title>Attention in" in document
    seen = Elements(document)
    assert "".join(seen.texts["span."] + seen.texts["span.special"]).startswith("A </script><img src=x onerror=")
    assert seen.texts["span.special"] == ["<|im_end|>"]


@pytest.mark.slow
def test_the_svg_in_a_browser(tmp_path: Path) -> None:
    from matplotlib import image

    picture = written(tmp_path, "a.svg", "--layer", "3", "--head", "2")
    matrix = np.load(written(tmp_path, "a.npz", "--layer", "3"))["weights"][0, 2]
    seen = Elements(browser.dom(picture))
    assert seen.texts["text.row"] == ["The", "␣cat", "␣sat", "␣on", "␣the", "␣mat"]
    assert "smollm2:135m: layer 3, head 2" in seen.texts["text."]
    drawn(seen, matrix)
    pixels = image.imread(str(browser.screenshot(picture, tmp_path / "a.png", width=400, height=400)))
    size = int(seen.cells[0]["width"] or 0)
    for cell in seen.cells:
        x, y = (int(cell[key] or 0) + size // 2 for key in ("x", "y"))
        weight = matrix[int(cell["data-row"] or 0), int(cell["data-column"] or 0)]
        assert pixels[y, x, 0] == pytest.approx(1 - weight**0.5 * (1 - 0x17 / 255), abs=0.02)
    right = int(seen.cells[0]["x"] or 0) + 5 * size + size // 2
    assert pixels[int(seen.cells[0]["y"] or 0) + size // 2, right, 0] == 1  # nothing looks ahead


@pytest.mark.slow
def test_the_terminal() -> None:
    done = localllm("explain", "--attention", TEXT)
    lines = done.stdout.splitlines()
    assert lines[0] == "smollm2:135m, mean of 30 layers, mean of 9 heads: percent of each row"
    assert lines[1].split() == list("012345") and lines[2].split() == ["0", "'The'", "100"]
    assert all(95 <= sum(map(int, line.split("'")[2].split())) <= 105 for line in lines[2:])
    with Terminal("explain", "--attention", TEXT, COLORTERM="truecolor") as terminal:
        assert terminal.exit_code() == 0
        row = next(y for y, line in enumerate(terminal.screen.display) if line.startswith("0 'The'"))
        grounds = [cell.bg for cell in terminal.screen.buffer[row].values()]
    assert "17457d" in grounds


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "pattern"), [(45, r"^ 0 'One' +█$"), (26, r"^ 0 'One' +100% 0 'One'$")])
def test_a_narrow_terminal(columns: int, pattern: str) -> None:
    words = "One two three four five six seven eight nine ten one two three four five six"
    with Terminal("explain", "--attention", words, columns=columns, rows=60, NO_COLOR="1") as terminal:
        assert terminal.exit_code() == 0
        assert re.search(pattern, terminal.text, re.M)


@pytest.mark.slow
def test_json_is_whole(tmp_path: Path) -> None:
    done = localllm("explain", "--attention", TEXT, "--json", "--combine", "rollout")
    found = json.loads(done.stdout)
    weights = np.array(found["weights"])
    assert weights.shape == (30, 9, 6, 6) and found["layers"] == list(range(30)) and found["heads"] == 9
    assert np.abs(np.array(found["matrix"]).sum(axis=1) - 1).max() < 1e-3
    assert "".join(token["piece"] for token in found["tokens"]) == TEXT


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--layer", "30"), "--layer 30: the model has the layers 0 to 29"),
        (("--head", "9"), "--head 9: the model has the heads 0 to 8"),
        (("--combine", "sum"), "--combine sum is not one of mean, max, rollout"),
        (("--combine", "rollout", "--layer", "1"), "--combine rollout goes through all layers (leave --layer out)"),
        (("--combine", "rollout", "--head", "1", "--out", "a.html"), "a page has the rollout of all heads together"),
        (("--flash-attention", "on"), "flash attention has no weights to show"),
        (("--out", "a.png"), "the formats are .html, .svg, .npz"),
        (("--out", "{here}/there.svg"), "there.svg exists (--force replaces it)"),
        (("--out", "{here}/none/a.svg"), "there is no folder"),
        (("--continue", "2"), "--attention is of one text and one model"),
    ],
)
def test_wrong_words(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "there.svg").write_text("mine")
    done = localllm("explain", "--attention", TEXT, *(word.format(here=tmp_path) for word in words))
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.svg"]


@pytest.mark.slow
def test_settings_for_speed_do_not_hide_it() -> None:
    fast = {"LOCALLLM_FLASH_ATTENTION": "on", "LOCALLLM_CACHE_TYPE_V": "q8_0"}
    assert localllm("explain", "--attention", TEXT, **fast).stdout == localllm("explain", "--attention", TEXT).stdout


@pytest.mark.slow
def test_a_name_of_control_characters_and_markup(tmp_path: Path, model_path: Path) -> None:
    hostile = tmp_path / "a\x1b[31m<b>&.gguf"
    hostile.symlink_to(model_path.resolve())
    shown = "a␛[31m<b>&.gguf"
    for words in (("--attention",), ("--compare", str(hostile))):
        done = localllm("explain", "-m", str(hostile), "The cat", *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert shown in done.stdout and "\x1b" not in done.stdout
    picture = written(tmp_path, "a.svg", "-m", str(hostile))
    ElementTree.parse(picture)
    assert shown.replace("<b>&", "&lt;b&gt;&amp;") in picture.read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_belongs_to_attention_and_what_is_too_long(tmp_path: Path) -> None:
    done = localllm("explain", TEXT, "--layer", "3")
    assert done.returncode == 2 and "belong to --attention" in done.stderr
    done = localllm("explain", "--attention", "-m", "smollm2", "x " * 400, "--out", str(tmp_path / "a.svg"))
    assert done.returncode == 2 and "a picture has room for 256" in done.stderr
    done = localllm("explain", "--attention", "-m", "smollm2", "x " * 900)
    assert done.returncode == 2 and "can be kept for 705 (a shorter text, or --layer N for one layer)" in done.stderr
