"""Makes tests/data/tokenizers: a small tokenizer for each way of splitting, and what the tokenizers library makes of the lines.

Run by hand, with tokenizers, transformers and sentencepiece: python tests/data/make_tokenizers.py
Real ones (SmolLM2's, MiniLM's) are given as folders: ... make_tokenizers.py smollm2=FOLDER minilm=FOLDER
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from pydoc_data import topics
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).parents[2]))
from localllm.convert import pretokenizer as known
from tests.support.lines import lines

DATA = Path(__file__).parent / "tokenizers"
P = pre_tokenizers
TEXT = [*lines(), *list(topics.topics.values())[:20]]


def split(*patterns: str) -> list[Any]:
    return [P.Split(Regex(pattern), "isolated") for pattern in patterns]


BYTES = [P.ByteLevel(add_prefix_space=False, use_regex=False)]
GPT2 = [P.ByteLevel(add_prefix_space=False, use_regex=True)]
CASES: dict[str, tuple[list[Any], bool]] = {
    "gpt-2": (GPT2, False),
    "smollm": ([P.Digits(individual_digits=True), *GPT2], False),
    "llama-bpe": ([*split(known._LLAMA3), *BYTES], True),
    "dbrx": ([*split(known._LLAMA3), *BYTES], False),
    "qwen2": ([*split(known._QWEN2), *BYTES], False),
    "qwen35": ([*split(known._QWEN35), *BYTES], False),
    "tekken": ([*split(known._TEKKEN), *BYTES], True),
    "gpt-4o": ([*split(known._GPT4O), *BYTES], False),
    "falcon": ([P.Punctuation("contiguous"), *GPT2, P.Digits(individual_digits=False), *split("[0-9][0-9][0-9]")], False),
    "deepseek-v3": ([*split(r"\p{N}{1,3}", known._CJK, known._DEEPSEEK3), *BYTES], False),
    "deepseek-coder": ([*split("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", known._DEEPSEEK_CJK),
                        P.Digits(individual_digits=True), *BYTES], False),
}  # fmt: skip


def byte_level(steps: list[Any], whole_words: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else P.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<|end|>"], initial_alphabet=P.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXT, trainer)
    if whole_words:
        described = json.loads(tokenizer.to_str())
        described["model"]["ignore_merges"] = True
        tokenizer = Tokenizer.from_str(json.dumps(described))
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """As transformers writes a Llama 2 tokenizer without its tokenizer.model."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=1100, special_tokens=specials))
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = described["added_tokens"][:3]  # the bytes are no specials
    described["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    return Tokenizer.from_str(json.dumps(described))


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = P.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=1200, special_tokens=specials))
    return tokenizer


def sums(tokenizer: Any) -> list[int]:
    """A checksum of every line's ids."""
    return [zlib.crc32(repr(tokenizer.encode(line, add_special_tokens=False).ids).encode()) for line in lines()]


def sentencepiece_model(folder: Path) -> list[int]:
    import sentencepiece

    text = folder / "text.txt"
    text.write_text("\n".join(line for part in TEXT for line in part.splitlines() if line.strip()), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=1100, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.99, num_threads=1,
    )  # fmt: skip
    text.unlink()
    (folder / "tokenizer.vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return [zlib.crc32(repr(model.encode(line)).encode()) for line in lines()]


def main() -> None:
    DATA.mkdir(exist_ok=True)
    made = {name: byte_level(*case) for name, case in CASES.items()}
    made |= {"sentencepiece-json": sentencepiece_like(), "wordpiece": word_pieces()}
    expected = {}
    for name, tokenizer in made.items():
        (DATA / f"{name}.json").write_text(tokenizer.to_str(), encoding="utf-8")
        expected[name] = sums(tokenizer)
    expected["sentencepiece"] = sentencepiece_model(DATA)
    for name, folder in (word.split("=") for word in sys.argv[1:]):
        real = Tokenizer.from_file(f"{folder}/tokenizer.json")
        real.no_truncation()
        real.no_padding()
        expected[name] = sums(real)
    (DATA / "expected.json").write_text(json.dumps(expected) + "\n")
    print({name: len(found) for name, found in expected.items()})


if __name__ == "__main__":
    main()
