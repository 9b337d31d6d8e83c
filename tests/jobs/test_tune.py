"""`tune`: what is recommended for which goal, what is kept, and what the next `run` makes of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from localllm.errors import UsageError
from localllm.hub import local
from localllm.jobs.tune import Measured, Setting, fewest_threads, pareto_front, recommend
from localllm.ui.plot import characters
from tests.support.command import COMMAND, Terminal, localllm


def candidate(name: str, size: int, prompt: float, decode: float, kld: float) -> Measured:
    return Measured(name, Path(name), size, size + 50, prompt, decode, kld, kld / 50, 1 - kld)


FAST = candidate("Q4_0", 100, 900, 200, 0.25)
MIDDLE = candidate("Q4_K_M", 110, 700, 150, 0.05)
BEATEN = candidate("Q5_0", 120, 690, 140, 0.06)
EXACT = candidate("Q8_0", 150, 650, 130, 0.004)
ALL = [FAST, MIDDLE, BEATEN, EXACT]


def test_goals() -> None:
    assert recommend(ALL, "speed") is FAST
    assert recommend(ALL, "quality") is EXACT
    assert recommend(ALL, "balanced") is EXACT
    slower = candidate("Q8_0", 150, 300, 60, 0.004)
    assert recommend([FAST, MIDDLE, BEATEN, slower], "balanced") is MIDDLE


def test_bounds() -> None:
    assert recommend(ALL, "quality", max_size=119) is MIDDLE
    assert recommend(ALL, "quality", max_memory=155) is FAST
    with pytest.raises(UsageError, match="none is that small: Q4_0 is the smallest with 100 bytes, 150 in memory"):
        recommend(ALL, "quality", max_size=99)


def test_the_pareto_front() -> None:
    assert pareto_front(ALL) == [FAST, MIDDLE, EXACT]
    assert pareto_front([FAST, FAST]) == [FAST, FAST]


def test_threads() -> None:
    one, two = Setting(1, "f16", 500, 196, 0), Setting(2, "f16", 505, 198, 0)
    assert fewest_threads([one, two]) is one
    assert fewest_threads([Setting(1, "f16", 300, 100), two]) is two
    assert Setting(1, "q8_0", 1, 1).options.items() >= {("cache_type_k", "q8_0"), ("cache_type_v", "q8_0")}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_plot(width: int) -> None:
    lines = characters(ALL, pareto_front(ALL), width)
    assert max(map(len, lines)) <= width
    drawn = "\n".join(lines[1:-2])
    assert all(drawn.count(letter) == 1 for letter in "ABcD")
    assert "0.2500" in lines[1] and "0.0040" in lines[-3] and lines[-1].endswith("200 tokens/s")
    assert characters([FAST], [FAST], width)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> tuple[Path, dict[str, Any]]:
    """SmolLM2 Q4_1 against itself and a Q8_0 file of nonsense: what is to be compared does not matter here."""
    from localllm.jobs import quantize

    folder = tmp_path_factory.mktemp("tuned")
    other = folder / "SmolLM2-Q5_0.gguf"
    quantize.quantize(model_path, other, "Q5_0", quantize.Choice(requantize=True), lambda done, total: None)
    words = ["tune", str(model_path), str(model_path), str(other), "--chunks", "1", "--goal", "quality", "--json",
             "--use", "--plot", str(folder / "plot.svg"), "-o", str(folder)]  # fmt: skip
    done = localllm(*words, LOCALLLM_HOME=str(folder / "home"))
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.slow
def test_what_is_measured(tuned: tuple[Path, dict[str, Any]], model_path: Path) -> None:
    folder, found = tuned
    same, worse = found["candidates"]
    assert same["kld"] == 0 and same["same_top"] == 1 and same["chosen"] and same["pareto"]
    assert 0 < worse["kld"] < 1 and not worse["chosen"]
    for each in (same, worse):
        assert each["size"] == Path(each["path"]).stat().st_size < each["memory"]
        assert each["prompt_ts"] > each["decode_ts"] > 1
    assert [s["cache_type"] for s in found["settings"]][-1] == "q8_0" and sum(
        s["chosen"] for s in found["settings"]
    ) == 1
    assert "<svg" in (folder / "plot.svg").read_text() and "SmolLM2-Q5_0.gguf" in (folder / "plot.svg").read_text()


@pytest.mark.slow
def test_the_next_run_uses_it(tuned: tuple[Path, dict[str, Any]], model_path: Path) -> None:
    folder, found = tuned
    ((_, manifest),) = local.manifests(folder / "home" / "models")
    assert manifest.options == found["options"] and manifest.files[0].path == str(model_path)
    done = localllm("run", "-m", manifest.name, "Hi", "-n", "2", LOCALLLM_HOME=str(folder / "home"))
    assert done.returncode == 0 and done.stdout


@pytest.mark.slow
def test_what_is_made_is_kept_or_gone(tmp_path: Path) -> None:
    from localllm.convert import gguf
    from tests.support import checkpoints

    checkpoints.write(tmp_path / "tiny", "llama-yarn")
    gguf.write(gguf.plan(tmp_path / "tiny", "f32"), tmp_path / "tiny-F32.gguf")
    words = [*COMMAND, "tune", "tiny-F32.gguf", "Q4_0", "Q8_0", "--chunks", "1", "--goal", "quality"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "for quality: Q8_0, tiny-Q8_0.gguf" in done.stdout and "localllm run -m tiny-Q8_0.gguf" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny", "tiny-F32.gguf", "tiny-Q8_0.gguf"]
    kept = subprocess.run([*words, "--keep", "--force"], cwd=tmp_path, capture_output=True, text=True)
    assert kept.returncode == 0
    assert sorted(p.name for p in tmp_path.glob("*.gguf")) == ["tiny-F32.gguf", "tiny-Q4_0.gguf", "tiny-Q8_0.gguf"]
    with Terminal("tune", str(tmp_path / "tiny-F32.gguf"), str(tmp_path / "tiny-Q4_0.gguf"),
                  str(tmp_path / "tiny-Q8_0.gguf"), "--chunks", "1", rows=50) as terminal:  # fmt: skip
        terminal.wait(lambda screen: "localllm run -m" in screen)
        assert terminal.exit_code() == 0
        assert "KL divergence" in terminal.text and "tokens/s" in terminal.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--goal", "best"), "--goal best: the goals are speed, balanced, quality"),
        (("--max-size", "large"), "--max-size 'large' is not a size"),
        (("--plot", "plot.pdf"), "a plot is a .png or .svg file"),
        (("Q99",), "'Q99' is not a quantization type"),
        (("missing.gguf",), "no such file: missing.gguf"),
        (("-o", "/dev/null"), "/dev/null is not a folder"),
    ],
)
def test_wrong_words(words: tuple[str, ...], message: str, model_path: Path) -> None:
    done = localllm("tune", str(model_path), *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [{"lora": ["x"]}, {"threads": "2"}, {"threads": 0}, [1], {"unknown": 1}])
def test_hostile_manifests(options: Any) -> None:
    table = {"name": "m", "format": "gguf", "files": [{"path": "m.gguf", "size": 1}], "options": options}
    from localllm.errors import BadModelFile

    with pytest.raises(BadModelFile):
        local.parse_manifest(json.dumps(table), "here")
