"""Runs a script in a process whose memory is bounded: for what comes out of files that somebody else made.

`command` is for the parent. The file is also the first thing that runs in the process itself, started by path, where it
knows the standard library alone.
"""

import runpy
import sys
from pathlib import Path


def command(script: Path, memory: int, *words: str) -> list[str]:
    """The command line of a Python process of at most `memory` bytes, isolated from the user's own modules."""
    return [sys.executable, "-I", "-X", "utf8", __file__, str(memory), str(script), *words]


def limit_memory(size: int) -> None:
    """Bound this process's memory where the system can (not on Windows; there the parent's timer is the bound)."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass


if __name__ == "__main__":
    limit_memory(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
