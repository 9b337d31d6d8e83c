"""What lies around an ONNX model and belongs to it: configuration, tokenizer, chat template; in three layouts.

Optimum, transformers.js   repository/onnx/model_q4.onnx, with the rest in repository/
onnxruntime-genai          folder/genai_config.json names the model beside it
our own export             folder/model.onnx, with the rest beside it
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.engines.onnx_tokenizer import read_json
from localllm.errors import BadModelFile, ModelNotFound

_NAMES = ("model.onnx", "decoder_model_merged.onnx")  # the latter with a branch for prompts and one for tokens


@dataclass(frozen=True, slots=True)
class Folder:
    """A model and the files that tell about it; an object that is not there is {}."""

    model: Path
    tokenizer: Path
    config: dict[str, Any]
    genai: dict[str, Any]
    settings: dict[str, Any]
    ends: tuple[int, ...]
    template: str | None

    @property
    def trained(self) -> int:
        """Tokens of context that the model was trained for, 0 where nothing tells."""
        decoder = _table(self.genai.get("model"))
        text = _table(self.config.get("text_config"))
        numbers = (
            decoder.get("context_length"),
            *(t.get(key) for t in (self.config, text) for key in ("max_position_embeddings", "n_positions")),
        )
        return next((n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n > 0), 0)


def read_folder(path: Path) -> Folder:
    """Everything about a model, which is named by its file or its folder. Raises ModelNotFound, BadModelFile."""
    model = _model_file(path)
    home = model.absolute().parent  # of a file that is named in its own folder the parent has no name
    places = [home, home.parent] if home.name == "onnx" else [home]

    def find(name: str) -> Path:
        return next((place / name for place in places if (place / name).is_file()), places[0] / name)

    config = read_json(find("config.json"))
    genai = read_json(model.parent / "genai_config.json")
    generation = read_json(find("generation_config.json"))
    settings = read_json(find("tokenizer_config.json"))
    ends = [_table(t).get("eos_token_id") for t in (genai.get("model"), generation, config)]
    return Folder(
        model,
        find("tokenizer.json"),
        {**_table(config.get("text_config")), **config},
        genai,
        settings,
        tuple(i for end in ends for i in (end if isinstance(end, list) else [end]) if isinstance(i, int)),
        _template(find("chat_template.jinja"), find("chat_template.json"), settings),
    )


def _model_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelNotFound(f"no such file: {path}", "give the path of an .onnx file or its folder")
    named = _table(_table(read_json(path / "genai_config.json").get("model")).get("decoder")).get("filename")
    candidates = [path / named] if isinstance(named, str) and "/" not in named and "\\" not in named else []
    candidates += [place / name for name in _NAMES for place in (path, path / "onnx")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    found = sorted([*path.glob("*.onnx"), *path.glob("onnx/*.onnx")])
    if len(found) == 1:
        return found[0]
    raise BadModelFile(f"{path} is a folder with {len(found) or 'no'} .onnx files", "name one of them")


def _template(jinja: Path, old: Path, settings: dict[str, Any]) -> str | None:
    if jinja.is_file():
        try:
            return jinja.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadModelFile(f"{jinja} cannot be read: {error}") from None
    own = settings.get("chat_template") or read_json(old).get("chat_template")
    if isinstance(own, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in own if isinstance(t, dict)}
        own = named.get("default")
    return own if isinstance(own, str) else None


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
