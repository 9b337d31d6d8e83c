"""What a user may type for a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from localllm.errors import UsageError
from localllm.hub.reference import HubReference, LocalPath, ModelName, looks_like_model, parse


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("smollm2:135m", ModelName("smollm2", "135m")),
        ("SmolLM2:135M", ModelName("smollm2", "135m")),
        ("qwen3", ModelName("qwen3")),
        ("owner/repo", HubReference("owner", "repo")),
        ("owner/Repo-GGUF:Q4_K_M", HubReference("owner", "Repo-GGUF", "Q4_K_M")),
        ("./a/b", LocalPath(Path("./a/b"))),
        ("a/b.gguf", LocalPath(Path("a/b.gguf"))),
        ("/x", LocalPath(Path("/x"))),
    ],
)
def test_parse(text: str, reference: object) -> None:
    assert parse(text) == reference
    if not isinstance(reference, LocalPath):
        assert str(parse(text)).lower() == text.lower()


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "repo").touch()
    assert parse("owner/repo") == LocalPath(Path("owner/repo"))


def test_a_folder_called_as_a_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "thesis.txt").touch()
    assert parse("smollm2:135m") == ModelName("smollm2", "135m")
    assert parse("./smollm2:q4") == LocalPath(Path("smollm2"), "q4")
    for name in ("onnx/model_q4.onnx", "model.onnx", "model-Q4_0.gguf"):
        place = tmp_path / "smollm2" / name
        place.parent.mkdir(exist_ok=True)
        place.touch()
        assert parse("smollm2:q4") == LocalPath(Path("smollm2"), "q4"), name
        place.unlink()


@pytest.mark.parametrize(
    "text", ["a/b/c", "a/..", "../", "a b", "", "a:b:c", "a/b:", ":x", "a/b--c", "x" * 5000, "a\0b"]
)
def test_hostile_names_are_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        parsed = parse(text)
    except UsageError:
        return
    # What is taken can only be a path of the user's own or a plain name, never a way out of a folder.
    assert isinstance(parsed, LocalPath | ModelName)
    assert not isinstance(parsed, ModelName) or not {"/", ".."} & set(parsed.family)


@pytest.mark.parametrize("text", ["~5 apples", "~nobody-of-that-name/x", "http://[abc", "https://[::1", "hf://"])
def test_odd_words_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)
    assert looks_like_model(text) is False


@pytest.mark.parametrize(
    ("word", "looks"),
    [
        ("a/b", True),
        ("name:tag", True),
        ("x.gguf", True),
        ("a/b:Q4", True),
        ("hello", False),
        ("Translate:", False),
        ("what is a/b", False),
        ("", False),
        ("12:30 at noon", False),
    ],
)
def test_looks_like_model(word: str, looks: bool) -> None:
    assert looks_like_model(word) is looks
