"""Makes inside.npz: what transformers finds inside SmolLM2, computed in float32 by its plain ("eager") attention.

    python -m tests.data.make_inside SmolLM2-135M-Instruct.Q4_1.gguf

The checkpoint is the one that `tests.support.real_checkpoints.smollm2` makes of that file. Needs torch and transformers,
which neither the product nor its tests do.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.real_checkpoints import smollm2

SENTENCE = "The cat sat on the mat"
TEXT = (
    "Gravity is the force by which a planet draws objects toward its center. It keeps all of the planets in orbit around "
    "the sun; in 1687, Isaac Newton wrote down how strong it is. naïve 你好 😀 <|im_end|>"
)
TOP = 20


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = smollm2(Path(place) / "smollm2", Path(sys.argv[1]))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        seen = model(**tokenizer(SENTENCE, return_tensors="pt"), output_attentions=True)
        ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
        logprobs = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
    best = logprobs.topk(TOP, dim=-1)
    attention = torch.stack([layer[0] for layer in seen.attentions]).numpy()  # layers, heads, tokens, tokens
    rows, columns = np.tril_indices(attention.shape[-1])
    np.savez_compressed(
        Path(__file__).with_name("inside.npz"),
        sentence=np.array(SENTENCE), text=np.array(TEXT),
        attention=attention[:, :, rows, columns].astype(np.float32),  # the lower triangles, row by row
        ids=ids[0].numpy().astype(np.int32),
        logprobs=logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]].numpy().astype(np.float32),
        top_ids=best.indices.numpy().astype(np.int32), top_logprobs=best.values.numpy().astype(np.float32),
    )  # fmt: skip


if __name__ == "__main__":
    main()
