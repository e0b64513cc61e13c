"""``tekken.json``: Mistral's byte-level BPE, all that Devstral and Magistral have.

Layout and meaning: ``mistral_common/tokens/tokenizers/tekken.py``. Special tokens have the first
ids, ordinary ones follow by rank. Text is split by a pattern; a stretch that is a token is one, and
else the two neighbours whose joint bytes have the lowest rank are joined (tiktoken), which for
llama.cpp is written as merges.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint.folder import read_json
from quantkit.checkpoint.tokenizer.chat_template import template_metadata
from quantkit.checkpoint.tokenizer.source import TokenizerSource
from quantkit.checkpoint.tokenizer.vocabulary import BYTE_LETTERS, Metadata, TokenType, unused_token
from quantkit.core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The pattern that llama.cpp's pre-tokenizer "tekken" stands for (src/llama-vocab.cpp).
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Files up to version 7 need not list their special tokens.
_LAST_WITHOUT_SPECIALS = 7
_ASSUMED_SPECIALS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
_ROLES = (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"), ("pad", "<pad>"))
_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


@dataclass(frozen=True, slots=True)
class Tekken:
    """A tekken.json, as much of it as its vocabulary size says."""

    specials: tuple[str, ...]
    """Texts of the special tokens, by id."""
    ranks: Mapping[bytes, int]
    """Ordinary tokens, in the order of their ranks; ids follow those of the special tokens."""

    @property
    def n_tokens(self) -> int:
        """How many tokens it has, special ones included."""
        return len(self.specials) + len(self.ranks)

    @property
    def special_ids(self) -> dict[str, int]:
        """The ids of the special tokens of a kind: bos, eos, unk, pad."""
        return {kind: self.specials.index(t) for kind, t in _ROLES if t in self.specials}

    def texts(self) -> list[str]:
        """Every token as byte-level BPE writes it, by id."""
        return [*self.specials, *map(_letters, self.ranks)]

    def merges(self) -> Iterator[tuple[str, str]]:
        """All pairs of tokens that are joined to a token, in the order of what they make."""
        ranks = self.ranks
        letters = {token: _letters(token) for token in ranks}
        for token in ranks:
            pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
            known = [(left, right) for left, right in pairs if left in ranks and right in ranks]
            if len(known) > 1:
                known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
            for left, right in known:
                yield letters[left], letters[right]


def read_tekken(path: Path) -> Tekken:
    """Read a tekken.json.

    Raises:
        TokenizerError: it is damaged, or splits texts otherwise than llama.cpp can.
        CheckpointError: it is not JSON.

    """
    document = read_json(path)
    try:
        config = document["config"]
        if config["pattern"] != PATTERN:
            raise TokenizerError(
                f"{path} splits text by another pattern than llama.cpp has for Mistral's "
                "tokenizers; quantkit cannot convert this tokenizer."
            )
        n_specials, n_tokens = config["default_num_special_tokens"], config["default_vocab_size"]
        specials = _specials(path, document, n_specials)
        listed = document["vocab"][: n_tokens - n_specials]
        tokens = [base64.b64decode(entry["token_bytes"], validate=True) for entry in listed]
        ranked = [entry["rank"] for entry in listed] == list(range(n_tokens - n_specials))
    except (KeyError, TypeError, IndexError, binascii.Error) as error:
        raise _damaged(path, f"it is not laid out as Mistral's are ({error})") from error
    if not ranked:
        raise _damaged(path, f"it does not list {n_tokens - n_specials} tokens by rank")
    if tokens[:256] != [bytes([byte]) for byte in range(256)]:
        raise _damaged(path, "its first 256 tokens are not the bytes")
    if len(set(tokens)) < len(tokens) or len(set(specials)) < len(specials):
        raise _damaged(path, "it has a token twice")
    return Tekken(specials, {token: rank for rank, token in enumerate(tokens)})


def _specials(path: Path, document: Mapping[str, Any], count: int) -> tuple[str, ...]:
    listed = document.get("special_tokens")
    if listed is None:
        version = str(document["config"].get("version")).removeprefix("v")
        if not version.isdecimal() or int(version) > _LAST_WITHOUT_SPECIALS:
            raise _damaged(path, "it has no special_tokens")
        texts = list(_ASSUMED_SPECIALS)
    else:
        texts = [entry["token_str"] for entry in sorted(listed, key=lambda entry: entry["rank"])]
        if sorted(entry["rank"] for entry in listed) != list(range(len(listed))):
            raise _damaged(path, "its special_tokens leave out an id")
    if len(texts) > count or not {"<s>", "</s>"} <= set(texts):
        raise _damaged(path, "its special_tokens are not those of a model")
    return (*texts, *(f"<SPECIAL_{i}>" for i in range(len(texts), count)))


def tekken_metadata(source: TokenizerSource, path: Path) -> Metadata:
    """The keys of a tekken.json, in the converter's order (``_set_vocab_mistral``).

    Raises:
        TokenizerError: it is damaged, of another model, or not as llama.cpp can split texts.
        CheckpointError: it is not JSON.

    """
    tekken = open_tekken(source, path)
    padding = range(tekken.n_tokens, source.vocab_size)
    n_ordinary = len(tekken.ranks)
    ids = tekken.special_ids
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "tekken",
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in tekken.merges()],
        **{f"tokenizer.ggml.{_KEYS[kind]}_token_id": token for kind, token in ids.items()},
        "tokenizer.ggml.tokens": [*tekken.texts(), *map(unused_token, padding)],
        "tokenizer.ggml.scores": [0] * source.vocab_size,
        "tokenizer.ggml.token_type": [
            *[int(TokenType.CONTROL)] * len(tekken.specials),
            *[int(TokenType.NORMAL)] * n_ordinary,
            *[int(TokenType.UNUSED)] * len(padding),
        ],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        # The converter puts in a template that was written for the version, or only its name,
        # which newer readers take for the template itself. Here a model has its own or none.
        **template_metadata(source),
    }


def open_tekken(source: TokenizerSource, path: Path) -> Tekken:
    """A checkpoint's tekken.json, all of whose tokens have a row in the embeddings.

    Raises:
        TokenizerError: it is damaged, of another model, or not as llama.cpp can split texts.
        CheckpointError: it is not JSON.

    """
    tekken = read_tekken(path)
    if tekken.n_tokens > source.vocab_size:
        raise TokenizerError(
            f"{path} has {tekken.n_tokens} tokens, but config.json says vocab_size = "
            f"{source.vocab_size}; copy the tokenizer files and config.json of one model."
        )
    return tekken


def tekken_backend(tekken: Tekken) -> "Tokenizer":
    """A tokenizer of the tokenizers library that gives text a tekken.json's tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = {text: token_id for token_id, text in enumerate(tekken.texts())}
    model = models.BPE(vocab=vocab, merges=list(tekken.merges()), ignore_merges=True)
    backend = Tokenizer(model)
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    backend.decoder = decoders.ByteLevel()
    return backend


def _letters(token: bytes) -> str:
    return token.decode("latin-1").translate(BYTE_LETTERS)


def _damaged(path: Path, fault: str) -> TokenizerError:
    return TokenizerError(f"{path} is damaged: {fault}; download it again.")
