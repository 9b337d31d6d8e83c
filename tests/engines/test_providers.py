"""Which provider is tried, from what is installed and what was asked for; none of them has to be there."""

from __future__ import annotations

import pytest

from localllm.engines import providers
from localllm.errors import UsageError

CPU = "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("option", "available", "tried"),
    [
        ("auto", [CPU], ["cpu"]),
        ("auto", [], ["cpu"]),
        ("auto", ["AzureExecutionProvider", CPU], ["cpu"]),
        ("auto", ["TensorrtExecutionProvider", "CUDAExecutionProvider", CPU], ["cuda", "cpu"]),
        ("auto", [CPU, "DmlExecutionProvider"], ["directml", "cpu"]),
        ("auto", ["CoreMLExecutionProvider", "WebGpuExecutionProvider", CPU], ["coreml", "webgpu", "cpu"]),
        ("cpu", ["CUDAExecutionProvider", CPU], ["cpu"]),
        ("openvino", ["CUDAExecutionProvider", "OpenVINOExecutionProvider", CPU], ["openvino", "cpu"]),
    ],
)
def test_what_is_tried(option: str, available: list[str], tried: list[str]) -> None:
    assert providers.to_try(option, available) == tried


def test_what_is_not_installed_is_named_with_its_package() -> None:
    with pytest.raises(UsageError, match="this ONNX Runtime has cpu") as caught:
        providers.to_try("cuda", [CPU])
    assert caught.value.hint == "pip install onnxruntime-gpu"
    with pytest.raises(UsageError, match="there is no such provider"):
        providers.to_try("abacus", [CPU])


def test_a_provider_that_was_dropped_is_noticed() -> None:
    assert providers.chosen("cuda", ["CUDAExecutionProvider", CPU])
    assert not providers.chosen("cuda", [CPU])


def test_every_provider_has_a_name_a_device_and_a_package() -> None:
    for name in providers.PROVIDERS:
        assert providers.full_name(name).endswith("ExecutionProvider")
        assert providers.device(name) in ("cpu", "cuda", "dml")
        assert providers.package(name).startswith("onnxruntime")
