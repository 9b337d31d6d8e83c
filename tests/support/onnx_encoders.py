"""Tiny encoders as ONNX files, plain operators only, that take and give what is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

TOKENIZER = Path(__file__).parents[1] / "data" / "tokenizers" / "wordpiece.json"
WIDTH, VOCABULARY = 8, 1200


def table() -> np.ndarray:
    """The vector of each token, float32 (vocabulary, width)."""
    return np.random.RandomState(1).standard_normal((VOCABULARY, WIDTH)).astype(np.float32)


def write(
    path: Path, inputs: Sequence[str], output: str, *, integers: int = TensorProto.INT64, pooled: bool = False
) -> Path:
    """A model that gives each token's vector, plus 100 at its position; `pooled` gives the first token's alone."""
    shape = ["batch", "sequence"]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["vectors"])]
    last = "vectors"
    if "position_ids" in inputs:
        nodes += [
            helper.make_node("Cast", ["position_ids"], ["positions"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["positions", "hundred"], ["moved"]),
            helper.make_node("Unsqueeze", ["moved", "last_axis"], ["column"]),
            helper.make_node("Add", [last, "column"], ["placed"]),
        ]
        last = "placed"
    nodes.append(helper.make_node("Gather", [last, "first"], [output], axis=1) if pooled
                 else helper.make_node("Identity", [last], [output]))  # fmt: skip
    constants = {"table": table(), "hundred": np.float32(100), "last_axis": np.array([2]), "first": np.array(0)}
    graph = helper.make_graph(
        nodes, "encoder", [helper.make_tensor_value_info(name, integers, shape) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *([] if pooled else ["sequence"]), WIDTH])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def beside(folder: Path, **files: Any) -> Path:
    """A tokenizer, and JSON files by their names without the ending (`1_Pooling/config` for one in a folder)."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
    for name, value in files.items():
        (folder / f"{name}.json").parent.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder
