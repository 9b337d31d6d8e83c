"""BERT and what embeds text with it (MiniLM, BGE), and Nomic's with rotary positions."""

from __future__ import annotations

from localllm.convert.family import Family, Value


class Bert(Family):
    architecture = "bert"
    names = {"BertModel", "BertForMaskedLM"}
    defaults = {"max_position_embeddings": 512, "layer_norm_eps": 1e-12, "type_vocab_size": 2}
    activations = {"gelu"}
    causal = False
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
        return found | self.pooling()


class NomicBert(Bert):
    """Its configurations come in transformers' words and in those of the code that it was published with."""

    architecture = "nomic-bert"
    names = {"NomicBertModel"}
    defaults = {"n_positions": 2048, "layer_norm_eps": 1e-12, "type_vocab_size": 2, "rotary_emb_base": 1000.0,
                "max_trained_positions": 2048}  # fmt: skip
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
            found["context_length"] = min(c.size("n_positions"), c.size("max_trained_positions"))
        return found


FAMILIES = (Bert, NomicBert)
