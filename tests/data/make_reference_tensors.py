"""Makes tests/data/reference_tensors.json: digests of what llama.cpp's own converter makes of real checkpoints.

Run by hand with the gguf package, on its outputs: ... make_reference_tensors.py smollm2-bf16=FILE minilm-f16=FILE ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.real_checkpoints import tensor_digest

if __name__ == "__main__":
    found = {name: tensor_digest(Path(file)) for name, file in (word.split("=") for word in sys.argv[1:])}
    target = Path(__file__).with_name("reference_tensors.json")
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(found)
