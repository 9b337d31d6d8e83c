"""What a command needs to reach the loopback Hub and nothing of the developer's own."""

from __future__ import annotations

from pathlib import Path

from tests.support.hub_server import Hub


def environment(hub: Hub | None, folder: Path, **more: str) -> dict[str, str]:
    """An empty cache and data directory below `folder`; without a hub, one where nobody listens."""
    return {
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9",
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "",
        "LOCALLLM_HOME": str(folder / "data"),
        **more,
    }


def tree(folder: Path) -> dict[str, str]:
    """The files below the cache and what they are, but for locks: path -> "link", "partial" or "file"."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if ".locks" in name or (path.is_dir() and not path.is_symlink()):
            continue
        found[name] = "link" if path.is_symlink() else "partial" if name.endswith(".incomplete") else "file"
    return found
