"""Which of ONNX Runtime's execution providers computes, best first. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from localllm.errors import UsageError

# What --provider calls them -> ONNX Runtime's name, the best first, and where tensors that stay there are allocated.
PROVIDERS = {
    "cuda": ("CUDAExecutionProvider", "cuda"),
    "tensorrt-rtx": ("NvTensorRTRTXExecutionProvider", "cuda"),
    "directml": ("DmlExecutionProvider", "dml"),
    "rocm": ("ROCMExecutionProvider", "cuda"),
    "migraphx": ("MIGraphXExecutionProvider", "cpu"),
    "openvino": ("OpenVINOExecutionProvider", "cpu"),
    "qnn": ("QNNExecutionProvider", "cpu"),
    "coreml": ("CoreMLExecutionProvider", "cpu"),
    "webgpu": ("WebGpuExecutionProvider", "cpu"),
    "cpu": ("CPUExecutionProvider", "cpu"),
}


def to_try(option: str, available: Sequence[str]) -> list[str]:
    """The providers to try one after the other, by their short names; the CPU is always the last.

    `available` are ONNX Runtime's names of those that it was built with. Raises UsageError for one it lacks.
    """
    installed = [name for name, (full, _) in PROVIDERS.items() if full in available]
    if option == "auto":
        return installed if "cpu" in installed else [*installed, "cpu"]
    if option not in PROVIDERS:
        raise UsageError(f"--provider {option}: there is no such provider", f"it is one of {', '.join(PROVIDERS)}")
    if option not in installed:
        raise UsageError(
            f"--provider {option}: this ONNX Runtime has {', '.join(installed)}", f"pip install {package(option)}"
        )
    return [option, "cpu"] if option != "cpu" else ["cpu"]


def package(name: str) -> str:
    """The package that brings a provider."""
    return {
        "cuda": "onnxruntime-gpu",
        "tensorrt-rtx": "onnxruntime-trt-rtx",
        "directml": "onnxruntime-directml",
        "rocm": "onnxruntime-rocm",
        "migraphx": "onnxruntime-migraphx",
        "openvino": "onnxruntime-openvino",
        "qnn": "onnxruntime-qnn",
        "webgpu": "onnxruntime-webgpu",
    }.get(name, "onnxruntime")


def full_name(name: str) -> str:
    return PROVIDERS[name][0]


def device(name: str) -> str:
    """The device on which tensors lie that are handed from step to step."""
    return PROVIDERS[name][1]


def chosen(tried: str, used: Sequence[str]) -> bool:
    """Whether a session that was to use a provider does: ONNX Runtime drops one that does not start."""
    return full_name(tried) in used
