"""A family of models: how its configuration and tensors are told in a GGUF, as a table that a subclass fills in.

Names of metadata follow the GGUF description; what each family needs was read in llama.cpp's sources (src/models/,
conversion/). A configuration that llama.cpp would compute differently is refused: the model would err in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, ClassVar

from localllm.convert import rows
from localllm.convert.checkpoint import FLOATS, Checkpoint, Stored, read_json
from localllm.convert.config import Config
from localllm.convert.outputs import Output, Piece
from localllm.errors import BadModelFile

if TYPE_CHECKING:
    import numpy as np

Value = str | bool | int | float | list[Any]
Order = Callable[[Config, Stored], "np.ndarray"]

# Buffers that are computed anew and parts of a model that sees or hears, which have a file of their own.
_LEFT_OUT = re.compile(
    r"rotary_emb\.inv_freq|\.attn\.(masked_)?bias$|\.attention\.(masked_)?bias$|position_ids$"
    r"|vision_|vision\.|visual\.|audio_|multi_modal_projector|mm_projector"
)
_POOLING_FOLDER = "1_Pooling"  # where sentence-transformers writes it
_POOLING = {"mean": 1, "cls": 2, "lasttoken": 3}  # by llama.cpp's llama_pooling_type
_BLOCK = re.compile(r"\.(\d+)\.")


class Family:
    """`architecture` is the name in a GGUF, `names` the classes of transformers that are of this family."""

    architecture: ClassVar[str]
    names: ClassVar[Set[str]]
    # What transformers takes where config.json is silent.
    defaults: ClassVar[Mapping[str, Any]] = {}
    # The activations that llama.cpp computes for the family.
    activations: ClassVar[Set[str]] = {"silu", "swish"}
    # Whether a token sees none of those after it.
    causal: ClassVar[bool] = True
    # The kinds of RoPE that can be told in its GGUF.
    ropes: ClassVar[Set[str]] = {"default", "linear", "yarn"}
    # Part of a tensor's name -> the order its rows take.
    orders: ClassVar[Mapping[str, Order]] = {}
    # Part of a tensor's name -> the two names that its halves get.
    halves: ClassVar[Mapping[str, tuple[str, str]]] = {}
    # What to call a tensor before the gguf package's map is asked: part of a name -> replacement.
    renamed: ClassVar[Mapping[str, str]] = {}
    # Endings of tensors that are not wanted in the file.
    dropped: ClassVar[tuple[str, ...]] = ()
    # Tensors of which one comes of many, in the order of the number: what stands before it and behind it.
    stacked: ClassVar[re.Pattern[str]] = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")
    # Added to every weight of a norm.
    norm_added: ClassVar[float] = 0.0

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config.with_defaults(self.defaults)
        self.notices: list[str] = []

    # --- what a subclass tells -------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse what llama.cpp cannot compute. Raises BadModelFile."""
        c = self.config
        name = next((n for n in ("hidden_activation", "hidden_act", "activation_function") if c.has(n)), "")
        if name:
            c.require(name, c.get(name), self.activations, "llama.cpp computes the family with another activation")
        sees = "no token" if self.causal else "every token"
        c.require("is_causal", c.get("is_causal"), (None, self.causal), f"llama.cpp lets {sees} see those after it")
        c.require("RoPE type", c.rope.kind, self.ropes, f"only {', '.join(sorted(self.ropes))} can be told in a GGUF")

    def metadata(self) -> dict[str, Value]:
        """The file's metadata below the architecture's name. Raises BadModelFile."""
        c = self.config
        found: dict[str, Value] = {
            "block_count": c.layers,
            "context_length": c.size("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"),
            "embedding_length": c.hidden,
            "feed_forward_length": self.feed_forward,
            "attention.head_count": c.heads,
            "attention.head_count_kv": c.kv_heads,
        }
        if c.has("head_dim"):
            found |= {"attention.key_length": c.head, "attention.value_length": c.head}
        if c.has("rms_norm_eps"):
            found["attention.layer_norm_rms_epsilon"] = c.number("rms_norm_eps")
        if c.has("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
            names = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
            found["attention.layer_norm_epsilon"] = c.number(*names)
        if c.has("num_local_experts", "num_experts"):
            found["expert_count"] = c.integer("num_local_experts", "num_experts")
        if c.has("num_experts_per_tok"):
            found["expert_used_count"] = c.integer("num_experts_per_tok")
        return found | self._rope()

    def _rope(self) -> dict[str, Value]:
        rope, found = self.config.rope, dict[str, Value]()
        if rope.theta is not None:
            found["rope.freq_base"] = rope.theta
        if rope.local_theta is not None:
            found["rope.freq_base_swa"] = rope.local_theta
        if rope.kind in ("linear", "yarn"):
            found |= {"rope.scaling.type": rope.kind, "rope.scaling.factor": rope.number("factor")}
        if rope.kind == "yarn":
            found["rope.scaling.original_context_length"] = self._original_context()
            for name in ("attention_factor", "beta_fast", "beta_slow"):
                if rope.get(name) is not None:
                    found[f"rope.scaling.yarn_{name.replace('attention', 'attn')}"] = rope.number(name)
        return found

    def _original_context(self) -> int:
        rope = self.config.rope
        if rope.get("original_max_position_embeddings") is not None:
            return int(rope.number("original_max_position_embeddings"))
        return self.config.size("max_position_embeddings")

    @property
    def feed_forward(self) -> int:
        """Elements inside a layer's feed-forward."""
        return self.config.size("intermediate_size")

    def pooling(self) -> dict[str, Value]:
        """How a text's tokens become one vector, where sentence-transformers notes it beside the model."""
        folder = self.checkpoint.folder / _POOLING_FOLDER
        if not (folder / "config.json").exists():
            return {}
        settings = read_json(folder / "config.json")
        told = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
        modes = [name for name, key in told.items() if settings.get(f"pooling_mode_{key}")]
        mode = modes[0] if modes else str(settings.get("pooling_mode", ""))
        if mode not in _POOLING:
            raise BadModelFile(f"{folder} pools in a way that llama.cpp does not: {mode[:40]!r}")
        return {"pooling_type": _POOLING[mode]}

    def computed(self) -> Iterator[Output]:
        """Tensors that the checkpoint has not, made from its configuration."""
        return iter(())

    # --- the tensors -----------------------------------------------------------------------------------------------

    def outputs(self) -> list[Output]:
        """Every tensor of the file, in the checkpoint's order. Raises BadModelFile for one that has no place in it."""
        found = list(self.computed())
        stacks: dict[str, dict[int, Stored]] = {}
        for name, source in self.checkpoint.tensors.items():
            if self._is_dropped(name):
                continue
            if match := self.stacked.fullmatch(name):
                stacks.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = source
            else:
                found += self._outputs_of(name, source)
        found += [self._stack(name, sources) for name, sources in stacks.items()]
        self._require_whole(found)
        return found

    def _is_dropped(self, name: str) -> bool:
        if _LEFT_OUT.search(name) or name.endswith(self.dropped or ("\0",)):
            return True
        # Where the embeddings are tied transformers does not look at this one, which some savers write all the same.
        return name.endswith("lm_head.weight") and self.config.flag("tie_word_embeddings")

    def _outputs_of(self, name: str, source: Stored) -> list[Output]:
        for part, names in self.halves.items():
            if part in name:
                if len(source.shape) < 2 or source.shape[-2] % 2:
                    raise BadModelFile(f"{name[:80]!r} has the shape {source.shape} and cannot be halved")
                shape = (*source.shape[:-2], source.shape[-2] // 2, source.shape[-1])
                pieces = [Piece(source, rows.half(source.shape, which)) for which in (0, 1)]
                targets = [self.name_of(name.replace(part, half)) for half in names]
                return [Output(target, shape, (piece,)) for target, piece in zip(targets, pieces, strict=True)]
        piece = self.piece(name, source)
        added = self.norm_added if name.endswith("norm.weight") else 0.0
        return [Output(self.name_of(name), piece.shape, (piece,), added=added)]

    def piece(self, name: str, source: Stored) -> Piece:
        """A tensor with its rows in the order that llama.cpp wants. Raises BadModelFile."""
        order = next((order for part, order in self.orders.items() if part in name), None)
        try:
            return Piece(source, None if order is None else order(self.config, source))
        except (ValueError, ZeroDivisionError):
            raise BadModelFile(f"{name[:80]!r} has the shape {source.shape}, which the configuration denies") from None

    def _stack(self, name: str, sources: dict[int, Stored]) -> Output:
        """One tensor of many, as of all experts of a layer."""
        count = len(sources)
        if sorted(sources) != list(range(count)):
            raise BadModelFile(f"{name[:80]!r} is there {count} times, and some number is missing")
        first = sources[0]
        if any(s.shape != first.shape or s.dtype != first.dtype for s in sources.values()):
            raise BadModelFile(f"the tensors that become {name[:80]!r} differ in shape or type")
        return Output(self.name_of(name), (count, *first.shape), tuple(Piece(sources[i]) for i in range(count)))

    def name_of(self, name: str) -> str:
        """A checkpoint's name -> a GGUF's, by the gguf package's tables."""
        short = name.replace("language_model.", "")
        for part, new in self.renamed.items():
            short = short.replace(part, new)
        for candidate in (short, f"model.{short}"):  # without its head a model is saved without the prefix
            found = self._names().get_name(candidate, try_suffixes=(".weight", ".bias"))
            if found is not None:
                return str(found)
        raise BadModelFile(
            f"the tensor {name[:100]!r} has no place in a GGUF of the architecture {self.architecture!r}",
            "the checkpoint is not what its configuration says, or newer than this version",
        )

    def _names(self) -> Any:
        if not hasattr(self, "_name_map"):
            import gguf

            kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
            self._name_map = gguf.get_tensor_name_map(kind, self.config.layers)
        return self._name_map

    def _require_whole(self, found: list[Output]) -> None:
        names = [output.name for output in found]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise BadModelFile(f"two tensors of the checkpoint want to be {twice!r}")
        for output in found:
            for piece in output.pieces:
                if piece.source.dtype not in FLOATS:
                    kind = piece.source.dtype
                    raise BadModelFile(
                        f"{piece.source.tensor.name[:80]!r} is of the type {kind}, which is not converted"
                    )
        blocks = {int(match[1]) for name in names if (match := _BLOCK.search(name))}
        if blocks != set(range(self.config.layers)):
            raise self.config.bad(f"its {self.config.layers} layers are not those of the tensors ({len(blocks)})")
        if "token_embd.weight" not in names:
            raise BadModelFile(f"{self.checkpoint.folder} has no token embeddings")

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embeddings, which is what counts: configurations have been seen to say otherwise."""
        for name, source in self.checkpoint.tensors.items():
            if not self._is_dropped(name) and len(source.shape) == 2 and self._is_embedding(name):
                return source.shape[0]
        raise BadModelFile(f"{self.checkpoint.folder} has no token embeddings")

    def _is_embedding(self, name: str) -> bool:
        return name.endswith(("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight"))


def turned(heads: str) -> Order:
    """Queries or keys whose rotation is told in halves; `heads` is the property of Config that counts them."""
    return lambda config, source: rows.interleaved_halves(source.shape[0], getattr(config, heads))
