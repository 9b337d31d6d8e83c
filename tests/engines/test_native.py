"""How the native library is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("given", "turns"), [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_threads_wait_briefly_on_a_crowded_machine(given: dict[str, str], turns: str) -> None:
    """By libgomp's own account where that is what waits (on Linux); what the user has set stays."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    command = [sys.executable, "-c", "from localllm.engines.native import llama; llama()"]
    environment = clean | given | {"OMP_DISPLAY_ENV": "verbose"}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert sys.platform != "linux" or f"GOMP_SPINCOUNT = '{turns}'" in done.stderr
