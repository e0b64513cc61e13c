"""Tokenizers of a thousand tokens, trained on what every Python carries."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tests.architectures.small import N_TOKENS, Vocabulary
from tests.checkpoint.vocabularies import piece_bpe, sentencepiece_model

# Some converters ask for tokens of theirs.
SPECIALS = (
    *("<pad>", "<s>", "</s>", "<unk>", "<|endoftext|>", "<|user|>", "<|observation|>"),
    *("[gMASK]", "<sop>", "<|im_start|>", "<|im_end|>"),
)
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_tokenizer(folder: Path, vocabulary: Vocabulary) -> None:
    """Write the files of one into a checkpoint."""
    settings: dict[str, str | bool]
    if vocabulary == "pieces":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(N_TOKENS))
        settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    elif vocabulary == "unigram":
        model = sentencepiece_model(
            N_TOKENS,
            model_type="unigram",
            byte_fallback=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            normalization_rule_name="nmt_nfkc",
            remove_extra_whitespaces=True,
        )
        (folder / "spiece.model").write_bytes(model)
        settings = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>"}
    elif vocabulary == "world":
        (folder / "rwkv_vocab_v20230424.txt").write_text(world(), encoding="utf-8")
        settings = {}
    elif vocabulary == "merges":
        # Gemma's puts no space before a text.
        spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        document = {**piece_bpe(), "normalizer": spaces}
        (folder / "tokenizer.json").write_text(json.dumps(document))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
        settings |= {"bos_token": "<s>", "eos_token": "</s>"}
    elif vocabulary == "words":
        (folder / "tokenizer.json").write_text(word_piece())
        settings = {
            "tokenizer_class": "BertTokenizer",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "unk_token": "[UNK]",
            "pad_token": "[PAD]",
            "mask_token": "[MASK]",
        }
    else:
        (folder / "tokenizer.json").write_text(byte_level())
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": True,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def world() -> str:
    """RWKV's kind: a line for each token but the first, its number, itself and its length."""
    words = {word for name in sorted(topics)[:9] for word in topics[name].split() if word.isascii()}
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [word.encode() for word in sorted(words) if len(word) > 1]
    lines = [f"{i} {token!r} {len(token)}" for i, token in enumerate(tokens[: N_TOKENS - 1], 1)]
    return "\n".join(lines) + "\n"


@cache
def byte_level() -> str:
    """GPT-2's kind, as a tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIALS),
        show_progress=False,
    )
    return _trained(tokenizer, trainer)


@cache
def word_piece() -> str:
    """BERT's kind, as a tokenizer.json: the texts' characters, their usual words and words' ends.

    Not by the library's trainer, which numbers pieces otherwise in every process.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    normalizer, words = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    found: Counter[str] = Counter()
    for text in _texts():
        found.update(word for word, _ in words.pre_tokenize_str(normalizer.normalize_str(text)))
    letters = sorted(set("".join(found)))
    ends: Counter[str] = Counter()
    for word, count in found.items():
        ends.update({f"##{word[cut:]}": count for cut in range(1, len(word) - 1)})
    usual = sorted((found + ends).items(), key=lambda piece: (-piece[1], piece[0]))
    pieces = [*BERT_SPECIALS, *letters, *(f"##{letter}" for letter in letters)]
    pieces += [piece for piece, _ in usual if piece not in set(pieces)]
    vocabulary = {piece: i for i, piece in enumerate(pieces[:N_TOKENS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.add_special_tokens(list(BERT_SPECIALS))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return _whole(tokenizer)


def _texts() -> list[str]:
    return [topics[name] for name in sorted(topics)[:30]]


def _trained(tokenizer: Any, trainer: Any) -> str:
    tokenizer.train_from_iterator(_texts(), trainer)
    return _whole(tokenizer)


def _whole(tokenizer: Any) -> str:
    if tokenizer.get_vocab_size() != N_TOKENS:
        raise ValueError(f"there are {tokenizer.get_vocab_size()} tokens, not {N_TOKENS}.")
    text: str = tokenizer.to_str()
    return text
