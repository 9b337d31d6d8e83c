"""BERT and what embeds text with it (MiniLM, BGE), and Nomic's with rotary positions."""

from __future__ import annotations

from localllm.convert.checkpoint import read_optional_json
from localllm.convert.family import Family, Value
from localllm.errors import BadModelFile

_POOLING = {"mean": 1, "cls": 2, "lasttoken": 3}  # by llama.cpp's llama_pooling_type


class Bert(Family):
    architecture = "bert"
    names = {"BertModel", "BertForMaskedLM"}
    defaults = {"max_position_embeddings": 512, "layer_norm_eps": 1e-12, "type_vocab_size": 2}
    activations = {"gelu"}
    ropes = {"default"}
    renamed = {".gamma": ".weight", ".beta": ".bias"}
    dropped = ("pooler.dense.weight", "pooler.dense.bias")

    def check(self) -> None:
        super().check()
        kind = self.config.get("position_embedding_type") or "absolute"
        self.config.require("position_embedding_type", kind, ("absolute",), "llama.cpp's BERT has absolute positions")

    def _is_dropped(self, name: str) -> bool:
        return name.startswith(("cls.", "classifier.")) or super()._is_dropped(name)

    def name_of(self, name: str) -> str:
        return super().name_of(name.removeprefix("bert."))

    def metadata(self) -> dict[str, Value]:
        found = super().metadata() | {"attention.causal": False, "attention.head_count_kv": self.config.heads}
        found["tokenizer.ggml.token_type_count"] = self.config.size("type_vocab_size")
        pooling = self._pooling()
        return found if pooling is None else found | {"pooling_type": pooling}

    def _pooling(self) -> int | None:
        """How a text's tokens become one vector, as sentence-transformers notes it beside the model."""
        folder = self.checkpoint.folder
        if not (folder / "modules.json").exists():
            return None
        settings = read_optional_json(folder / "1_Pooling" / "config.json")
        modes = [name for name, key in (("mean", "mean_tokens"), ("cls", "cls_token"), ("lasttoken", "lasttoken"))
                 if settings.get(f"pooling_mode_{key}")]  # fmt: skip
        mode = modes[0] if modes else str(settings.get("pooling_mode", ""))
        if mode not in _POOLING:
            raise BadModelFile(f"{folder / '1_Pooling'} pools in a way that llama.cpp does not: {mode[:40]!r}")
        return _POOLING[mode]


class NomicBert(Bert):
    """Its configurations come in transformers' words and in those of the code that it was published with."""

    architecture = "nomic-bert"
    names = {"NomicBertModel"}
    defaults = {"n_positions": 2048, "layer_norm_eps": 1e-12, "type_vocab_size": 2, "rotary_emb_base": 1000.0}
    activations = {"swiglu", "silu"}

    def check(self) -> None:
        super().check()
        c, why = self.config, "llama.cpp computes the family otherwise"
        for name, value in (("prenorm", False), ("rotary_emb_interleaved", False), ("rotary_emb_fraction", 1.0),
                            ("qkv_proj_bias", False), ("moe_every_n_layers", 0), ("causal", False)):  # fmt: skip
            if c.has(name):
                c.require(name, c.get(name), (value,), why)

    @property
    def feed_forward(self) -> int:
        return self.config.size("intermediate_size", "n_inner")

    def metadata(self) -> dict[str, Value]:
        c = self.config
        found = super().metadata()
        if c.has("n_positions") and not c.has("max_position_embeddings"):  # more than it was trained for
            found["context_length"] = min(c.size("n_positions"), int(c.get("max_trained_positions") or 2048))
        return found


FAMILIES = (Bert, NomicBert)
