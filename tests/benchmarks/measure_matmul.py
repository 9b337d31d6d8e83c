"""What bounds a decoded token on ONNX Runtime: its product with quantized weights alone, from the cache and from memory.

    python tests/benchmarks/measure_matmul.py [--threads N] [--runs N]

Plain reading of memory comes first, then MatMulNBits on one row for 576 x 1536 and 1536 x 576 weights: one matrix again
and again (from the second-level cache), or more of them than any cache holds. `packed` is what ONNX Runtime keeps of a
block on x86 at accuracy_level 4: its numbers, and a float32 for its scale and another for scale times zero point. The
shortest of many runs counts, so that a machine that others use tells the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from localllm.engines.huge_pages import use_huge_pages

MEMORY = 160 << 20  # bytes of packed weights, more than any cache
COPIES = 40  # products with one matrix in one run, so that what a run itself costs does not count
KINDS = ((4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (8, 128))  # bits, block


def reading(threads: int, runs: int) -> float:
    """Bytes per second that a plain loop over memory reads."""
    parts = np.array_split(np.ones(64 << 20, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return sum(p.nbytes for p in parts) / shortest(lambda: list(pool.map(np.max, parts)), runs)


def shortest(call: Callable[[], object], runs: int) -> float:
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def product(rows: int, columns: int, bits: int, block: int, *, matrices: int, threads: int, runs: int) -> float:
    """Seconds of a product of one row with (rows, columns) weights."""
    random, blocks = np.random.default_rng(0), rows // block
    nodes, constants, outputs = [], [], []
    for number in range(max(COPIES, matrices)):
        name = f"w{number % matrices}"
        if number < matrices:
            values = random.integers(0, 256, (columns, blocks, block * bits // 8), np.uint8)
            scales = random.random((columns, blocks), np.float32)
            constants += [numpy_helper.from_array(values, name), numpy_helper.from_array(scales, name + "s")]
        nodes.append(
            helper.make_node(
                "MatMulNBits", ["x", name, name + "s"], [f"y{number}"], domain="com.microsoft", K=rows, N=columns,
                bits=bits, block_size=block, accuracy_level=4,
            )
        )  # fmt: skip
        outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, [1, columns]))
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "products", given, outputs, constants)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    use_huge_pages()
    binding = session.io_binding()
    binding.bind_cpu_input("x", np.ones((1, rows), np.float32))
    for output in outputs:
        binding.bind_output(output.name)
    return shortest(lambda: session.run_with_iobinding(binding), runs) / len(nodes)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=40)
    given = parser.parse_args()
    print(f"plain reading, {given.threads} threads: {reading(given.threads, given.runs) / 1e9:.1f} GB/s")
    print("weights     bits block  packed bits/weight  from the cache  from memory")
    for rows, columns in ((576, 1536), (1536, 576)):
        for bits, block in KINDS:
            if rows % block:
                continue
            size = rows * columns // block * (block * bits // 8 + 8)
            hot, cold = (
                product(rows, columns, bits, block, matrices=count, threads=given.threads, runs=given.runs)
                for count in (1, MEMORY // size)
            )
            print(
                f"{rows:4} x {columns:4} {bits:4} {block:5} {size * 8 / rows / columns:19.2f} {hot * 1e6:12.1f} us "
                f"{cold * 1e6:9.1f} us, {size / cold / 1e9:.1f} GB/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
