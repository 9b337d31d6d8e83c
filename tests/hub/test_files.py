"""Which files of a repository belong together, what they are, and which names are never used as a path."""

from __future__ import annotations

import pytest

from localllm.errors import BadModelFile, DownloadError, ModelNotFound
from localllm.hub.files import RepoFile, Variant, best, check_path, quantization, require, select, variants


def listing(*names: str, size: int = 10) -> list[RepoFile]:
    return [RepoFile(name, size + index, "a" * 64) for index, name in enumerate(names)]


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3-4B-Q4_K_M.gguf", "Q4_K_M"),
        ("smollm2-135m-instruct-q8_0.gguf", "Q8_0"),
        ("model.Q4_0.gguf", "Q4_0"),
        ("model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Q8_0/model-00001-of-00002.gguf", "Q8_0"),
        ("model-Q5_K_S-00001-of-00003.gguf", "Q5_K_S"),
        ("model-IQ2_XXS.gguf", "IQ2_XXS"),
        ("model-TQ1_0.gguf", "TQ1_0"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model.fp16.gguf", "F16"),
        ("model-bf16.gguf", "BF16"),
        ("Q4-tales-7b.gguf", ""),
        ("model.gguf", ""),
    ],
)
def test_quantization(name: str, quant: str) -> None:
    assert quantization(name) == quant


def test_one_repository_of_everything() -> None:
    names = """
        a-Q4_0.gguf a-Q8_0.gguf b-F16-00001-of-00002.gguf b-F16-00002-of-00002.gguf half-Q2_K-00001-of-00002.gguf
        mmproj-BF16.gguf mmproj-F16.gguf imatrix_unsloth.gguf onnx/model.onnx onnx/model_q4f16.onnx
        onnx/model_q4f16.onnx_data onnx/model_quantized.onnx model.safetensors config.json tokenizer.json model.bin
        modeling.py 1_Pooling/config.json
    """
    found = variants(listing(*names.split()))
    seen = {(v.format, v.quant): [f.path for f in v.files] for v in found}
    assert seen == {
        ("gguf", "Q4_0"): ["a-Q4_0.gguf"],
        ("gguf", "Q8_0"): ["a-Q8_0.gguf"],
        ("gguf", "F16"): ["b-F16-00001-of-00002.gguf", "b-F16-00002-of-00002.gguf"],
        ("onnx", "f32"): ["onnx/model.onnx"],
        ("onnx", "q4f16"): ["onnx/model_q4f16.onnx", "onnx/model_q4f16.onnx_data"],
        ("onnx", "int8"): ["onnx/model_quantized.onnx"],
        ("safetensors", "safetensors"): ["model.safetensors"],
    }
    beside = {v.format: {f.path for f in v.companions} for v in found}
    assert beside["gguf"] == {"mmproj-F16.gguf", "tokenizer.json"}
    assert beside["onnx"] == beside["safetensors"]
    assert beside["safetensors"] == {"config.json", "tokenizer.json", "1_Pooling/config.json"}
    assert not any(p.endswith((".py", ".bin")) for v in found for p in (f.path for f in (*v.files, *v.companions)))


def test_shards_without_end_are_no_model() -> None:
    assert variants(listing("m-00001-of-99999.gguf")) == []
    assert variants(listing("m-00000-of-00000.gguf")) == []


@pytest.mark.parametrize(
    ("quant", "path"),
    [
        ("q4_k_m", "m-Q4_K_M.gguf"),
        ("Q4_K", "m-Q4_K_M.gguf"),
        ("q4", "m-Q4_K_M.gguf"),
        ("Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("special", "m-special.gguf"),
        ("q5_0", None),
    ],
)
def test_a_quantization_in_any_case(quant: str, path: str | None) -> None:
    names = ("m-Q4_K_S.gguf", "m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "m-special.gguf", "m-Q8_0.gguf")
    chosen = select(variants(listing(*names)), quant, "")
    assert [v.path for v in chosen] == ([path] if path else [])


@pytest.mark.parametrize(
    ("quant", "path"),
    [
        ("fp32", "onnx/model.onnx"),
        ("f32", "onnx/model.onnx"),
        ("fp16", "onnx/model_fp16.onnx"),
        ("F16", "onnx/model_fp16.onnx"),
        ("quantized", "onnx/model_quantized.onnx"),
        ("q8", "onnx/model_quantized.onnx"),
        ("q4", "onnx/model_q4.onnx"),
        ("q4f16", "onnx/model_q4f16.onnx"),
        ("f16_", None),
        ("4", None),
    ],
)
def test_what_transformers_js_calls_its_types(quant: str, path: str | None) -> None:
    """Its dtype q8 means the file model_quantized.onnx, and fp32 the one without an ending."""
    names = [f"onnx/model{end}.onnx" for end in ("", "_fp16", "_q4", "_q4f16", "_quantized", "_uint8")]
    chosen = select(variants(listing(*names)), quant, "")
    assert [v.path for v in chosen] == ([path] if path else [])


def test_decoders_in_three_exports_at_once() -> None:
    """What takes prompts alone, or single tokens alone, can hold no conversation."""
    parts = ("decoder_model", "decoder_with_past_model", "decoder_model_merged")
    names = [f"onnx/{part}{end}.onnx" for part in parts for end in ("", "_quantized")]
    found = variants(listing(*names, "onnx/decoder_model_fp16.onnx"))
    assert {v.quant: v.path for v in found} == {
        "f32": "onnx/decoder_model_merged.onnx",
        "int8": "onnx/decoder_model_merged_quantized.onnx",
        "f16": "onnx/decoder_model_fp16.onnx",
    }
    assert [v.path for v in select(found, "q8", "")] == ["onnx/decoder_model_merged_quantized.onnx"]


def test_the_best_that_fits_is_no_more_than_eight_bits() -> None:
    found = variants(listing("m-Q2_K.gguf", "m-Q4_0.gguf", "m-Q6_K.gguf", "m-Q8_0.gguf", "m-F16.gguf"))

    def up_to(limit: int) -> tuple[str, bool]:
        variant, fits = best(found, lambda v: v.size <= limit)
        return variant.quant, fits

    assert up_to(100) == ("Q8_0", True)
    assert up_to(12) == ("Q6_K", True)
    assert up_to(5) == ("Q2_K", False)
    assert best(variants(listing("m-F16.gguf", "m-BF16.gguf")), lambda _: True)[0].quant == "BF16"


@pytest.mark.parametrize(
    ("names", "quant", "file", "error", "text"),
    [
        (["m-Q4_0.gguf"], "Q8_0", "", ModelNotFound, "has no Q8_0"),
        (["m-Q4_0.gguf"], "", "x.gguf", ModelNotFound, "has no file x.gguf"),
        (["m-00001-of-00002.gguf"], "", "m-00001-of-00002.gguf", BadModelFile, "is not a complete model"),
        (["pytorch_model.bin"], "", "", BadModelFile, "holds pickles only"),
        (["README.md"], "", "", ModelNotFound, "holds no GGUF"),
    ],
)
def test_what_is_not_there(names: list[str], quant: str, file: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        require(variants(listing(*names)), "owner/repo", quant, file, names)


@pytest.mark.parametrize(
    "name",
    ["", "/a", "a//b", "../a", "a/..", "a/./b", "a\\b", "C:a", "a\0b", "a\nb", "con", "NUL.gguf", "lpt1.x", "a.", "b /c", "x" * 256],
)  # fmt: skip
def test_unsafe_names(name: str) -> None:
    with pytest.raises(DownloadError, match="no safe name"):
        check_path(name)


@pytest.mark.parametrize("name", ["a", "a/b-c_d.e.gguf", "Größe/模型.gguf", "console/nullify.txt", "x" * 255])
def test_safe_names(name: str) -> None:
    check_path(name)


def test_a_variant_knows_its_size() -> None:
    one, two = listing("a", "b")
    assert Variant("", "gguf", (one, two), (one,)).size == one.size + two.size
