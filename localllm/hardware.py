"""What this machine has: processor, memory, disk, memory bandwidth. GPUs are the engines' to find."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of RAM: all of it, and what a new process can take without swapping."""

    total: int
    available: int


def memory() -> Memory:
    """RAM, or less where a container may use only a part of it."""
    import psutil

    system = psutil.virtual_memory()
    limit = _cgroup_number("memory.max")
    if limit is None or limit >= system.total:
        return Memory(system.total, system.available)
    used = _cgroup_number("memory.current") or 0
    return Memory(limit, min(system.available, max(0, limit - used)))


def physical_cores() -> int:
    """Cores that this process may run on, without hyper-threads, at least 1."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def is_crowded() -> bool:
    """Whether other programs want so many of the cores now that our threads would have to share them (Linux only).

    Looks three times within four milliseconds, as something always runs for a moment; one more may be a child of ours.
    """
    if sys.platform != "linux":
        return False
    others = []
    for wait in (0, 0.002, 0.002):
        time.sleep(wait)
        running = _read("/proc/loadavg").split()[3:4] or ["1/1"]
        others.append(int(running[0].partition("/")[0]) - 1)
    return min(others) - 1 + physical_cores() > len(os.sched_getaffinity(0))


def processor() -> str:
    """The processor's name as the system gives it."""
    if sys.platform == "linux":
        for line in _read("/proc/cpuinfo").splitlines():
            if line.startswith(("model name", "Model", "cpu model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Those of the processor's instruction sets that matter to inference; empty where the system does not tell."""
    lines = (line for line in _read("/proc/cpuinfo").splitlines() if line.startswith(("flags", "Features")))
    flags = set(next(lines, "").partition(":")[2].split())
    return [name for name in _INSTRUCTION_SETS.split() if name in flags]


_INSTRUCTION_SETS = """
    sse3 ssse3 sse4_2 avx f16c fma avx2 avx_vnni avx512f avx512bw avx512vbmi avx512_vnni avx512_bf16 amx_int8 amx_bf16
    asimd asimddp fphp sve sve2 i8mm bf16 sme
"""


def repacked_types() -> frozenset[str]:
    """The quantization types whose weights llama.cpp's CPU backend copies into another order on this processor."""
    here = set(instruction_sets())
    if sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64"):
        return frozenset(("Q4_0", "Q4_K", "IQ4_NL", "MXFP4") if "avx2" in here else ()) | (
            {"Q2_K"} if "avx512f" in here else set()
        )
    if platform.machine() in ("aarch64", "arm64"):
        return frozenset(("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"))
    return frozenset(("Q4_0", "Q4_K", "IQ4_NL", "MXFP4"))


def memory_bandwidth(seconds: float = 0.3) -> float:
    """Bytes a second that all cores together read from memory, the best of several passes over 256 MiB."""
    import time
    from concurrent.futures import ThreadPoolExecutor

    import numpy

    cores = physical_cores()
    block = numpy.ones(256 << 20 >> 3, dtype=numpy.float64)
    parts = numpy.array_split(block, cores)
    best = 0.0
    end = time.perf_counter() + seconds
    with ThreadPoolExecutor(cores) as pool:
        while time.perf_counter() < end:
            started = time.perf_counter()
            list(pool.map(numpy.max, parts))
            best = max(best, block.nbytes / (time.perf_counter() - started))
    return best


def _cgroup_number(name: str) -> int | None:
    text = _read(f"/sys/fs/cgroup/{name}").strip()
    return int(text) if text.isdecimal() else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


Vendor = Literal["NVIDIA", "AMD", "Intel", "other"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """A display controller on the PCI bus, whether or not anything can compute on it."""

    vendor: Vendor
    address: str
    driver: str


_VENDORS: dict[str, Vendor] = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_DISPLAY_CLASSES = ("0x0300", "0x0302", "0x0380")


def gpus(bus: Path = Path("/sys/bus/pci/devices")) -> list[Gpu]:
    """The GPUs that Linux lists on the PCI bus; none elsewhere, where the engines' own lists are all there is."""
    found = []
    for device in sorted(bus.iterdir()) if bus.is_dir() else ():
        if _read(str(device / "class")).startswith(_DISPLAY_CLASSES):
            vendor = _VENDORS.get(_read(str(device / "vendor")).strip(), "other")
            driver = device / "driver"
            found.append(Gpu(vendor, device.name, driver.resolve().name if driver.exists() else ""))
    return found
