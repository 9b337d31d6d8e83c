"""Makes tests/data/embeddings.npz and masked.json: what others compute of the texts in tests/support/sentences.py.

Run by hand, with sentence-transformers and transformers: python tests/data/make_embeddings.py FOLDER
FOLDER is the checkpoint of all-MiniLM-L6-v2. The masked language model is small and random, the same on every machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support import sentences
from tests.support.masked import CONFIG, SHAPES_FILE, write_checkpoint

DATA = Path(__file__).parent


def embeddings(folder: str) -> None:
    model = SentenceTransformer(folder, device="cpu")
    found = model.encode(list(sentences.TEXTS), normalize_embeddings=True)
    np.savez_compressed(DATA / "embeddings.npz", embeddings=found.astype(np.float32))
    print("embeddings", found.shape)


def masked() -> None:
    config = transformers.BertConfig(**CONFIG)
    shapes = {
        k: list(v.shape) for k, v in transformers.BertForMaskedLM(config).state_dict().items() if v.is_floating_point()
    }
    # As saved: what is tied is there once.
    shapes = {k: v for k, v in shapes.items() if not k.startswith("cls.predictions.decoder.")}
    SHAPES_FILE.write_text(json.dumps({"shapes": shapes}) + "\n")
    with tempfile.TemporaryDirectory() as place:
        folder = write_checkpoint(Path(place))
        model = transformers.BertForMaskedLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), mask_token="[MASK]"
        )
        pipeline = transformers.pipeline("fill-mask", model=model.eval(), tokenizer=tokenizer, device="cpu")
        found = []
        for text in sentences.MASKED:
            answer = pipeline(text, top_k=5)
            several = answer if isinstance(answer[0], list) else [answer]
            found.append(
                [[{"token": c["token"], "piece": c["token_str"], "score": c["score"]} for c in m] for m in several]
            )
    SHAPES_FILE.write_text(json.dumps({"shapes": shapes, "expected": found}) + "\n")
    print("masked", [len(each) for each in found], found[0][0][0])


if __name__ == "__main__":
    embeddings(sys.argv[1])
    masked()
