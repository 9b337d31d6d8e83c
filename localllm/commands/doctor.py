"""`localllm doctor`: what this machine has, what is used of it, and what to install for the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from localllm.hardware import Gpu


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One object instead of text.")] = False,
) -> None:
    """Show the machine, the engines and the places where things lie."""
    report = examine()
    if as_json:
        import json

        print(json.dumps(report, indent=1, ensure_ascii=False))
        return
    for section, values in report.items():
        sys.stdout.write(f"{section}\n")
        for name, value in values.items():
            for index, line in enumerate(value if isinstance(value, list) else [value]):
                sys.stdout.write(f"  {name if not index else '':<16}  {_shown(name, line)}\n")


def examine() -> dict[str, dict[str, Any]]:
    """The whole report; sizes in bytes, bandwidth in bytes a second."""
    import os
    import platform
    import shutil

    from localllm import hardware
    from localllm.hub import catalogue, store
    from localllm.settings import settings_file

    memory = hardware.memory()
    data = store.data_directory()
    default = catalogue.get(catalogue.DEFAULT_MODEL)
    return {
        "machine": {
            "system": platform.platform(),
            "python": f"{platform.python_version()} at {sys.executable}",
            "processor": hardware.processor(),
            "instructions": " ".join(hardware.instruction_sets()),
            "cores": f"{hardware.physical_cores()} physical of {os.cpu_count()} logical",
            "memory": memory.total,
            "memory free": memory.available,
            "memory speed": round(hardware.memory_bandwidth()),
            "disk free": shutil.disk_usage(_existing(data)).free,
        },
        "llama.cpp": _llama_cpp(hardware.gpus()),
        "onnxruntime": _onnxruntime(hardware.gpus()),
        "places": {
            "models": str(data / "models"),
            "Hub cache": str(store.hub_cache()),
            "settings": str(settings_file()) + ("" if settings_file().exists() else " (not there: defaults)"),
            "catalogue": str(catalogue.folder()),
            "default model": f"{default.name}: {store.installed(default) or 'not fetched yet'}",
        },
    }


def _llama_cpp(gpus: Sequence[Gpu]) -> dict[str, Any]:
    from localllm.engines import native
    from localllm.errors import EngineError

    try:
        devices = native.devices()
        offload = bool(native.llama().llama_supports_gpu_offload())
        used = [name for name, on in native.cpu_features().items() if on]
    except EngineError as error:
        return {"error": f"{error} ({error.hint})"}
    return {
        "version": f"llama-cpp-python {native.version()}",
        "instructions": " ".join(used),
        "devices": [f"{d.name} ({d.kind}): {d.description}, {d.memory_total / (1 << 30):.1f} GiB" for d in devices],
        "GPU support": "yes" if offload else "not in this build",
        "advice": advice(gpus, [d.kind for d in devices], offload) or ["none: every device that was found is used"],
    }


_BACKENDS = {
    "NVIDIA": ("CUDA", "-DGGML_CUDA=on"),
    "AMD": ("ROCm", "-DGGML_HIP=on"),
    "Intel": ("SYCL", "-DGGML_SYCL=on"),
}
_DRIVERS = {"NVIDIA": "nvidia", "AMD": "amdgpu", "Intel": "i915 or xe"}


def advice(gpus: Sequence[Gpu], device_kinds: Sequence[str], offload: bool) -> list[str]:
    """For each GPU on the bus that llama.cpp does not use, the reason and what to install."""
    if any(kind in ("gpu", "igpu") for kind in device_kinds):
        return []
    lines = []
    for gpu in gpus:
        what = f"{gpu.vendor} GPU at {gpu.address}"
        if gpu.vendor not in _BACKENDS:
            lines.append(f"{what} is not used: llama.cpp has no backend for it")
        elif not gpu.driver or gpu.driver in ("nouveau", "vfio-pci"):
            reason = f"driver {gpu.driver}" if gpu.driver else "no driver"
            lines.append(f"{what} is not used ({reason}): install the driver {_DRIVERS[gpu.vendor]}")
        elif not offload:
            name, flag = _BACKENDS[gpu.vendor]
            lines.append(
                f"{what} is not used: this llama.cpp was built for the CPU alone; with {name} installed: "
                f"CMAKE_ARGS={flag} pip install --force-reinstall --no-cache-dir llama-cpp-python "
                f"(or -DGGML_VULKAN=on with the Vulkan SDK)"
            )
        else:
            lines.append(f"{what} is not used: this llama.cpp's GPU backend does not see it; check its driver")
    return lines


def provider_advice(gpus: Sequence[Gpu], tried: Sequence[str]) -> list[str]:
    """For each GPU on the bus that no installed provider is for, the package that brings one."""
    from localllm.engines import providers

    lines = []
    for gpu in gpus:
        wanted = _PROVIDERS.get(gpu.vendor, ())
        if wanted and not set(wanted) & set(tried):
            lines.append(f"{gpu.vendor} GPU at {gpu.address} is not used: pip install {providers.package(wanted[0])}")
    return lines


_PROVIDERS = {
    "NVIDIA": ("cuda", "tensorrt-rtx", "directml", "webgpu"),
    "AMD": ("migraphx", "rocm", "directml", "webgpu"),
    "Intel": ("openvino", "directml", "webgpu"),
}


def _onnxruntime(gpus: Sequence[Gpu]) -> dict[str, Any]:
    try:
        import onnxruntime
    except ImportError as error:
        return {"error": f"{error} (pip install onnxruntime)"}
    from localllm.engines import providers

    available = onnxruntime.get_available_providers()
    tried = providers.to_try("auto", available)
    return {
        "version": onnxruntime.__version__,
        "providers": tried,
        "used": f"{tried[0]}: {providers.full_name(tried[0])}" + (", else the next" if len(tried) > 1 else ""),
        "advice": provider_advice(gpus, tried) or ["none: every device that was found is used"],
    }


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _shown(name: str, value: Any) -> str:
    if isinstance(value, int):
        return f"{value / (1 << 30):.1f} GiB" + ("/s" if name == "memory speed" else "")
    return str(value)
