"""The texts beside an ONNX model: configuration, tokenizer, chat template, and genai_config.json.

The last is what onnxruntime-genai opens a folder by; its keys are those that its model builder writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from localllm.convert.checkpoint import MAX_JSON, Checkpoint, read_optional_json
from localllm.convert.onnx import tokenizer
from localllm.convert.onnx.decoder import ARCHITECTURES, Decoder
from localllm.convert.vocabulary import read_vocabulary
from localllm.errors import BadModelFile, ModelNotFound
from localllm.formats.gguf import Header

_COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "config.json",
           "generation_config.json")  # fmt: skip
# What sentence-transformers notes beside an encoder.
_SENTENCES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json")
NAMES = {*_COPIED, *_SENTENCES, "vocab.txt", "genai_config.json", "model.onnx", "model.onnx.data"}
Texts = dict[str, bytes]


def of_checkpoint(checkpoint: Checkpoint, model: Decoder) -> Texts:
    """What a checkpoint brings along, and what it lacks. Raises BadModelFile."""
    folder, found = checkpoint.folder, Texts()
    for name in _COPIED:
        if (folder / name).is_file():
            found[name] = _read(folder / name)
    settings = read_optional_json(folder / "tokenizer_config.json")
    if "tokenizer.json" not in found:
        found["tokenizer.json"] = _json(tokenizer.describe(_old_tokens(folder, model, settings)))
    template = settings.get("chat_template")
    if "chat_template.jinja" not in found and isinstance(template, str):
        found["chat_template.jinja"] = template.encode()
    advised = read_optional_json(folder / "generation_config.json")

    def special(name: str) -> list[int]:
        value = advised.get(f"{name}_token_id", checkpoint.config.get(f"{name}_token_id"))
        return _ids(value if isinstance(value, list) else [value], model)

    return found | {"genai_config.json": _json(_genai(model, special("bos"), special("eos"), special("pad")))}


def of_encoder(checkpoint: Checkpoint) -> Texts:
    """What an encoder's checkpoint brings along. Raises ModelNotFound where it has no tokenizer."""
    folder = checkpoint.folder
    names = (*_COPIED, *_SENTENCES, "vocab.txt")
    found = {name: _read(folder / name) for name in names if (folder / name).is_file()}
    if "tokenizer.json" not in found:
        found["tokenizer.json"] = _word_pieces(folder)
    return found


def _word_pieces(folder: Path) -> bytes:
    """A tokenizer.json out of an older checkpoint's vocab.txt."""
    from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

    if not (folder / "vocab.txt").is_file():
        raise ModelNotFound(f"{folder} has no tokenizer.json and no vocab.txt", "fetch one from the original model")
    settings = read_optional_json(folder / "tokenizer_config.json")
    unk, sep, cls, pad, mask = (
        _content(settings.get(f"{name}_token")) or f"[{name.upper()}]" for name in ("unk", "sep", "cls", "pad", "mask")
    )
    lowercase, accents = settings.get("do_lower_case", True), settings.get("strip_accents")
    try:
        made = BertWordPieceTokenizer(
            str(folder / "vocab.txt"), unk, sep, cls, pad, mask, lowercase=bool(lowercase),
            strip_accents=accents if isinstance(accents, bool) else None,
        )  # fmt: skip
    except Exception as error:  # Rust's errors come as this class itself
        raise BadModelFile(f"{folder / 'vocab.txt'} is no vocabulary: {error!s:.100}", "fetch it again") from None
    return str(made.to_str()).encode() + b"\n"


def _content(token: Any) -> str:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def of_header(header: Header, model: Decoder) -> Texts:
    """The same out of a GGUF's metadata. Raises BadModelFile."""
    tokens = tokenizer.of_header(header)
    found = {
        "tokenizer.json": _json(tokenizer.describe(tokens)),
        "tokenizer_config.json": _json(tokenizer.settings(tokens, model.context)),
    }
    template = header.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        found["chat_template.jinja"] = template.encode()
    turn = (header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom"))
    bos, eos, pad = (_ids(ids, model) for ids in ([tokens.bos], [tokens.eos, *turn], [tokens.padding]))
    special = {f"{n}_token_id": ids[0] for n, ids in (("bos", bos), ("eos", eos), ("pad", pad)) if ids}
    return found | {
        "config.json": _json(_config(model) | special),
        "generation_config.json": _json(special | ({"eos_token_id": eos} if eos else {})),
        "genai_config.json": _json(_genai(model, bos, eos, pad)),
    }


def _old_tokens(folder: Path, model: Decoder, settings: Mapping[str, Any]) -> tokenizer.Tokens:
    """The tokenizer of a checkpoint that has tokenizer.model and no tokenizer.json."""
    found = read_vocabulary(folder, model.vocabulary)
    if found.model != "llama":
        raise BadModelFile(f"{folder} has no tokenizer.json", "transformers' save_pretrained writes one")

    def special(name: str) -> int | None:
        text = settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        return found.tokens.index(text) if text in found.tokens else None

    return tokenizer.Tokens(
        found.model, found.pre, found.tokens, found.types, found.scores or [], [], special("bos"), special("eos"),
        special("unk"), special("pad"), bool(settings.get("add_bos_token", True)),
        bool(settings.get("add_eos_token", False)), found.flags.get("add_space_prefix", True),
    )  # fmt: skip


def _ids(values: Iterable[Any], model: Decoder) -> list[int]:
    """The ones that are tokens, each once."""
    whole = dict.fromkeys(v for v in values if isinstance(v, int) and not isinstance(v, bool))
    return [v for v in whole if 0 <= v < model.vocabulary]


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_JSON:
            raise BadModelFile(f"{path} has {path.stat().st_size} bytes, which no such file has")
        return path.read_bytes()
    except OSError as error:
        raise BadModelFile(f"{path} cannot be read: {error.strerror}", "check its permissions") from None


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"


def _config(model: Decoder) -> dict[str, Any]:
    """A config.json as far as programs that open the folder look at it."""
    name, kind = ARCHITECTURES[model.architecture]
    return {
        "architectures": [name], "model_type": kind, "hidden_size": model.hidden, "intermediate_size": model.inner,
        "num_hidden_layers": model.layers, "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads, "head_dim": model.head, "vocab_size": model.vocabulary,
        "max_position_embeddings": model.context, "rms_norm_eps": model.epsilon,
    }  # fmt: skip


def _genai(model: Decoder, bos: list[int], eos: list[int], pad: list[int]) -> dict[str, Any]:
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    inputs |= {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    outputs = {"logits": "logits"} | {f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []}, "filename": "model.onnx",
        "head_size": model.head, "hidden_size": model.hidden, "inputs": inputs, "outputs": outputs,
        "num_attention_heads": model.heads, "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
    }  # fmt: skip
    ends = eos or [0]
    return {
        "model": {
            "type": ARCHITECTURES[model.architecture][1], "context_length": model.context, "decoder": decoder,
            "vocab_size": model.vocabulary, "bos_token_id": (bos or ends)[0],
            "eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": (pad or ends)[0],
        },
        "search": {"do_sample": False, "max_length": model.context, "min_length": 0, "num_beams": 1,
                   "past_present_share_buffer": True, "temperature": 1.0, "top_k": 50, "top_p": 1.0},
    }  # fmt: skip
