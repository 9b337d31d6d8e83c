"""A `TokenModel` on llama.cpp's C API: model, context, KV cache, native sampler chain.

It knows ids and logits; templates, text, stop strings and timing are `local.py`'s. A prompt's longest common prefix
with what the KV cache holds is not computed again.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm import fit
from localllm.engines.interrupt import AbortFlag, abort_on_interrupt
from localllm.engines.llama_adapters import Adapters
from localllm.engines.llama_chain import links, look_back, penalizes
from localllm.engines.llama_errors import context_error, load_error
from localllm.engines.llama_state import put_state, settings_of_state, take_state
from localllm.engines.native import llama, log
from localllm.engines.prefix_cache import BLOCK, Prefix, PrefixCache
from localllm.engines.proofs import Proofs
from localllm.engines.vocabulary import Vocabulary, keep_accents
from localllm.errors import ContextOverflow, EngineError, NotNumbers
from localllm.formats.gguf import TYPE_IDS
from localllm.protocols import Mask, ModelDescription
from localllm.text.biases import read_biases
from localllm.types import EngineOptions, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCH = 2048
_ONE_SEQUENCE = {"n_batch": BATCH, "swa_full": False}
_FLASH = {"auto": -1, "off": 0, "on": 1}


class LlamaModel(Vocabulary):
    """One model with one context. Raises EngineError and its children; nothing it logs reaches the terminal."""

    def __init__(self, path: Path, options: EngineOptions, *, gpu_layers: int, threads: int) -> None:
        self._llama = llama()
        self._path, self._options, self._threads = path, options, threads
        self.gpu_layers = gpu_layers
        self._model: Any = None
        self._context: Any = None
        self._held: list[int] = []  # the tokens known to be in the KV cache
        self._touched = False  # whether there may be others
        self._ends: list[int] | None = None  # every token that ends an answer
        self._restored = 0  # how many of those held the cache of prefixes has
        self._changed = False  # whether there is more or other than what it has under a chat's name
        self.prefixes: PrefixCache | None = None
        self.output = -1  # the token of the last batch whose logits are read next; -1 is its last
        self.ahead: list[int] = []  # guesses that were evaluated beyond those held
        self._most_ahead = 0  # how many there may be
        self.exact = True  # whether only batches may be that give the bits of single steps, so that no answer changes
        self._proofs: Proofs | None = None  # which batches those are
        self.abort = AbortFlag()
        try:
            with self.interruptible():
                self._load(path, options, gpu_layers)
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path, options: EngineOptions, gpu_layers: int) -> None:
        api = self._llama
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = gpu_layers
        parameters.kv_overrides = keep_accents(api)
        parameters.load_mode = api.LLAMA_LOAD_MODE_MMAP if options.mmap else api.LLAMA_LOAD_MODE_NONE
        parameters.progress_callback = api.llama_progress_callback(lambda _part, _data: not self.abort.is_up)
        log.take_errors()
        self._model = api.llama_model_load_from_file(os.fsencode(path), parameters)
        self._raise_if_interrupted()
        if not self._model:
            raise load_error(path, log.take_errors())
        self._take_vocabulary(self._model)
        self.trained_context = api.llama_model_n_ctx_train(self._model)
        self._window = api.llama_model_n_swa(self._model)
        if not api.llama_model_has_decoder(self._model):
            raise EngineError(
                f"{path} is an encoder: it makes embeddings and cannot generate text", "name a chat model"
            )
        self._adapters = Adapters(api, self._model, path, options.lora)
        self.context = options.context or min(self.trained_context, fit.DEFAULT_CONTEXT)
        self._longest = self.context  # that there is memory for, and that was asked for

    def open_context(self, length: int | None = None) -> None:
        """Make the context and its KV cache, `length` tokens long; without it, as long as `context` says.

        A prompt is evaluated in a context of the full length if none was made before. Whoever knows that less will
        do (one answer of at most so many tokens) saves the memory and the time to clear it.
        """
        self._held, self._touched, self._restored = [], False, 0
        self.ahead, self.output = [], -1
        length = length or self.context
        self._make_context(
            length, n_outputs_max=1 + self._most_ahead, **_ONE_SEQUENCE
        )  # room for a row of logits a prompt token would cost 100 MB and more
        self.context = length

    def _make_context(self, length: int, **more: Any) -> None:
        """A context of `length` tokens in the place of the one there was; `more` are fields of its parameters."""
        api, options = self._llama, self._options
        if self._context:
            api.llama_free(self._context)
        parameters = api.llama_context_default_params()
        parameters.n_ctx = length
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.flash_attn_type = _FLASH[options.flash_attention]
        parameters.type_k = TYPE_IDS[options.cache_type_k.upper()]
        parameters.type_v = TYPE_IDS[options.cache_type_v.upper()]
        for name, value in more.items():
            setattr(parameters, name, value)
        self._context = api.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise context_error(self._path, options, length, log.take_errors())
        api.llama_set_abort_callback(
            self._context, ctypes.cast(self.abort.callback, api.ggml_abort_callback), self.abort.data
        )
        self._adapters.use(self._context)
        self._memory = api.llama_get_memory(self._context)

    def allow_guesses(self, count: int) -> None:
        """Let `count` guesses be evaluated at once, where they can be taken back: in a cache that keeps every token."""
        api = self._llama
        kept = not (self._window or api.llama_model_is_recurrent(self._model) or api.llama_model_is_hybrid(self._model))
        self._most_ahead = count if kept else 0
        self._proofs = Proofs(1 + count) if kept else None

    @property
    def _wanted(self) -> Proofs | None:
        return self._proofs if self.exact else None

    @property
    def lookahead(self) -> int:
        """How many guesses may be evaluated at once now."""
        proofs = self._wanted
        return min(self._most_ahead, proofs.limit(len(self._held)) - 1) if proofs else self._most_ahead

    def describe(self) -> ModelDescription:
        api = self._llama
        buffer = ctypes.create_string_buffer(256)
        api.llama_model_desc(self._model, buffer, len(buffer))
        size, parameters = api.llama_model_size(self._model), api.llama_model_n_params(self._model)
        return ModelDescription(buffer.value.decode(errors="replace"), size, parameters)

    def close(self) -> None:
        with self.interruptible():
            try:
                self._keep_prefix()
            finally:
                context, model, self._context, self._model = self._context, self._model, None, None
            if context:
                self._llama.llama_free(context)
            if model:
                self._llama.llama_model_free(model)

    # Evaluation

    def prefill(self, tokens: Sequence[int]) -> int:
        if len(tokens) >= self.context:
            raise ContextOverflow(len(tokens), self.context, self.trained_context)
        if not self._context:
            self.open_context()
        self._forget_rows()
        reused = self._rewind(tokens)
        if self.prefixes is not None and (
            found := self.prefixes.find(tokens, self._state_settings(self.context), reused, self._longest - 1)
        ):
            reused = self._restore(found, tokens)
        # The last token alone, as it is when all the others are here already: llama.cpp rounds otherwise in a batch,
        # and what is asked again is to have the same answer.
        if self.prefixes is not None and len(tokens) - reused > BLOCK:
            self._decode(tokens[reused:-1])
            self._decode(tokens[-1:])
        else:
            self._decode(tokens[reused:])
        self._require_numbers(-1)
        return reused

    def _require_numbers(self, output: int) -> None:
        """Raise NotNumbers where one logit is NaN: a norm spreads what is in any layer over all of them."""
        if not self._llama.llama_get_logits_ith(self._context, output)[0] < math.inf:
            raise NotNumbers

    def _restore(self, prefix: Prefix, tokens: Sequence[int]) -> int:
        """Take over a prefix from the cache; returns how many of `tokens` need not be evaluated."""
        length = len(prefix.tokens) + 1
        if length > self.context and self._state_settings(length) != self._state_settings(self.context):
            return self._rewind(tokens)
        self.clear()
        if length > self._llama.llama_n_ctx(self._context):
            self._make_context(length, n_outputs_max=1 + self._most_ahead, **_ONE_SEQUENCE)
        return self._rewind(tokens) if self._put(prefix) else 0

    def _put(self, prefix: Prefix) -> bool:
        """Hold a prefix in the place of what is held; whether llama.cpp takes it."""
        self.clear()
        self._touched = True
        if not put_state(self._llama, self._context, prefix.state):
            log.take_errors()
            self.clear()
            return False
        self._held, self._restored = list(prefix.tokens), len(prefix.tokens)
        return True

    def keep(self, chat: str) -> None:
        """Have the cache keep all that was evaluated here under the name of a chat, and under no other."""
        self._take_back()
        # What an evaluation would not give (`shift`) no later prompt goes on from.
        held = self._held[: self._held.index(-1)] if -1 in self._held else self._held
        if self.prefixes is None or not held or not self._changed:
            return
        with self.interruptible():
            if self._llama.llama_memory_seq_rm(self._memory, 0, len(held), -1):
                state = take_state(self._llama, self._context)
                self.prefixes.save(held, self._state_settings(self.context), state, chat)
                self._held, self._restored, self._changed = held, len(held), False

    def take_up(self, chat: str) -> None:
        """Hold what `keep` kept under this name, bit by bit: what follows rounds as it would have without a break."""
        if self.prefixes is None or not (
            found := self.prefixes.find_chat(chat, self._state_settings(self.context), self.context - 1)
        ):
            return
        if not self._context:
            self.open_context()
        self._changed = not self._put(found)

    def drop(self, chat: str) -> None:
        """Hold nothing any more, and have the cache forget what it kept under this name."""
        self.clear()
        if self.prefixes is not None:
            self.prefixes.forget(chat)

    def _keep_prefix(self) -> None:
        """Have the cache keep what was evaluated here, if that is worth it."""
        held = self._held
        self._take_back()
        if self.prefixes is None or len(held) - self._restored < BLOCK or -1 in held:
            return
        if self._llama.llama_memory_seq_rm(self._memory, 0, len(held), -1):
            self.prefixes.save(held, self._state_settings(self.context), take_state(self._llama, self._context))

    def _state_settings(self, length: int) -> str:
        api, options = self._llama, self._options
        return settings_of_state(api, self._model, options, self._adapters.names, self.gpu_layers, length)

    def feed(self, token: int) -> None:
        if self.ahead and self.ahead[0] == token:
            self._held.append(self.ahead.pop(0))
            self.output += 1
        else:
            self._take_back()
            self._decode([token])
        self._require_numbers(self.output)
        self._keep_row()

    def feed_ahead(self, token: int, guess: Sequence[int]) -> None:
        """Evaluate a token and some that may follow it; `feed` then takes those for granted that are the same.

        There may be as many as `clear_ahead` said.
        """
        if not guess:
            self.feed(token)
        else:
            self._take_back()
            self._decode([token, *guess], every=True)
            del self._held[-len(guess) :]
            self.ahead, self.output = list(guess), 0
            self._require_numbers(self.output)
            self._keep_row()
        self._llama.llama_synchronize(self._context)

    def clear_ahead(self, count: int) -> int:
        """How many of `count` guesses may be evaluated now: all or none.

        Where it is not known yet whether so large a batch gives the bits of single steps, the last tokens are evaluated
        again in one, to find out; and where it does not, once more one by one.
        """
        proofs, size = self._wanted, 1 + count
        if proofs is None or proofs.allows(size, len(self._held)):
            return count
        self._take_back()
        again = proofs.next(size, len(self._held))
        if again:
            tokens = self._held[-again:]
            self._forget_last(again)
            self._decode(tokens, every=True)
            if not proofs.compare([self._row(i) for i in range(again)], len(self._held)):
                self._forget_last(again)
                for token in tokens:
                    self._decode([token])
        return count if proofs.allows(size, len(self._held)) else 0

    def _keep_row(self) -> None:
        if proofs := self._wanted:
            if proofs.wants_rows(len(self._held)):
                proofs.rows.append(self._row(self.output))
            else:
                proofs.rows.clear()

    def _forget_rows(self) -> None:
        if self._proofs is not None:
            self._proofs.rows.clear()

    def _row(self, output: int) -> bytes:
        """The last layer's output, and the logits.

        What goes into the last product is quantized, and small differences often vanish there: logits are not enough.
        """
        api = self._llama
        logits = api.llama_get_logits_ith(self._context, output)
        hidden = api.llama_get_embeddings_ith(self._context, output)  # of a model that pools there is none
        width = 4 * api.llama_model_n_embd(self._model) if hidden else 0
        return ctypes.string_at(hidden, width) + ctypes.string_at(logits, 4 * self.vocabulary_size)

    def _forget_last(self, count: int) -> None:
        del self._held[-count:]
        self._llama.llama_memory_seq_rm(self._memory, 0, len(self._held), -1)

    def _take_back(self) -> None:
        """Forget the guesses that were not right."""
        if self.ahead:
            self._llama.llama_memory_seq_rm(self._memory, 0, len(self._held), -1)
            self.ahead = []
        self.output = -1

    def shift(self, keep: int, discard: int) -> bool:
        """llama.cpp's context shift: positions are rotated in the cache.

        What the later tokens had seen of the discarded ones stays in them. They are not what an evaluation would give,
        so no later prompt may reuse them: they stand in `_held` as an id that no token has.
        """
        self._take_back()
        self._forget_rows()
        api, memory = self._llama, self._memory
        if not api.llama_memory_can_shift(memory) or not api.llama_memory_seq_rm(memory, 0, keep, keep + discard):
            return False
        api.llama_memory_seq_add(memory, 0, keep + discard, -1, -discard)
        self._held[keep:] = [-1] * (len(self._held) - keep - discard)
        return True

    def clear(self) -> None:
        self.ahead, self.output = [], -1
        if self._touched:
            self._llama.llama_memory_clear(self._memory, False)
        self._held, self._touched, self._restored = [], False, 0

    def _rewind(self, tokens: Sequence[int]) -> int:
        """Cut the KV cache back to its longest common prefix with `tokens`; returns that prefix's length.

        The last token is always evaluated again: its logits are wanted.
        """
        self._take_back()
        same = 0
        for held, wanted in zip(self._held, tokens[:-1], strict=False):
            if held != wanted:
                break
            same += 1
        api = self._llama
        # A sliding window forgets what it has passed; what must be attended to may be gone.
        first_kept = api.llama_memory_seq_pos_min(self._memory, 0)
        forgotten = first_kept > max(0, same - self._window) if self._window else False
        if not same or forgotten or not api.llama_memory_seq_rm(self._memory, 0, same, -1):
            self.clear()
            return 0
        self._changed = self._changed or same < len(self._held)
        self._held, self._restored = self._held[:same], min(self._restored, same)
        return same

    def _decode(self, tokens: Sequence[int], *, every: bool = False) -> None:
        """Evaluate tokens; the last one's logits are wanted, or `every` one's."""
        api = self._llama
        # With it, logits come of every token too, for which a prompt has no room.
        api.llama_set_embeddings(self._context, self._wanted is not None and (every or len(tokens) == 1))
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            buffer = (ctypes.c_int32 * len(part))(*part)
            self._touched = self._changed = True
            self._raise_if_interrupted()
            batch = api.llama_batch_get_one(buffer, len(part))
            if every:
                batch.logits = (ctypes.c_int8 * len(part))(*([1] * len(part)))
            result = api.llama_decode(self._context, batch)
            self._raise_if_interrupted()
            if result != 0:
                reason = "; ".join(log.take_errors()) or f"llama_decode returned {result}"
                raise EngineError(f"llama.cpp could not evaluate {len(part)} tokens: {reason}")
            self._held.extend(part)

    def _raise_if_interrupted(self) -> None:
        if self.abort.is_up:
            raise KeyboardInterrupt

    def interruptible(self) -> AbstractContextManager[None]:
        return abort_on_interrupt(self.abort)

    # Sampling

    def logits(self) -> NDArray[np.float32]:
        import numpy as np

        return np.ctypeslib.as_array(
            self._llama.llama_get_logits_ith(self._context, self.output), (self.vocabulary_size,)
        )

    @contextmanager
    def sampler(
        self, sampling: Sampling, *, ignore_eos: bool, history: Sequence[int], mask: Mask | None = None
    ) -> Iterator[Callable[[], int]]:
        api = self._llama
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        try:
            biases = self._biases(sampling, ignore_eos)
            for link in links(api, self._vocabulary, self.vocabulary_size, self.context, sampling, biases):
                api.llama_sampler_chain_add(chain, link)
            for token in history[-look_back(sampling, self.context) :] if penalizes(sampling) else ():
                api.llama_sampler_accept(chain, token)
            if mask is None:
                yield lambda: int(api.llama_sampler_sample(chain, self._context, self.output))
            else:
                from localllm.engines.llama_masked import masked_draw

                yield lambda: masked_draw(api, chain, self.logits, mask)
        finally:
            api.llama_sampler_free(chain)

    def _biases(self, sampling: Sampling, ignore_eos: bool) -> list[tuple[int, float]]:
        biases = read_biases(sampling.logit_bias, self.vocabulary_size)
        if ignore_eos:
            if self._ends is None:  # to ask of every token takes longer than to draw a hundred
                self._ends = [token for token in range(self.vocabulary_size) if self.is_end(token)]
            biases += [(token, float("-inf")) for token in self._ends]
        return biases
