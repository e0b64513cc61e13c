"""The tokens that stand before and after every text, and how a GGUF says so.

The model's own tokenizer decides: what transformers' AutoTokenizer puts around a text (read off
``from_pretrained``, ``TokenizersBackend`` and ``CodeLlamaTokenizer`` of transformers 5.23). Beside
a tokenizer.json it does not read ``add_bos_token`` and ``add_eos_token`` of tokenizer_config.json;
with tokenizer.model alone it does. Where they are missing there, it puts nothing in front and 4.57
BOS, which counts (see ``sentencepiece.model_frame``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint.tokenizer.source import TokenizerSource
from quantkit.checkpoint.tokenizer.vocabulary import (
    SENTENCEPIECE_BOS,
    SENTENCEPIECE_EOS,
    Metadata,
    assumes_bos,
    token_text,
)
from quantkit.core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_KEY = "tokenizer.ggml."
_PROBE = "a"


@dataclass(frozen=True, slots=True)
class Frame:
    """Ids before and after every text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def around(self, ids: Sequence[int]) -> list[int]:
        """A text's ids with those that surround it."""
        return [*self.before, *ids, *self.after]


def post_processed(backend: "Tokenizer", source: TokenizerSource) -> Frame:
    """What the post-processor of an opened tokenizer.json does.

    Raises:
        TokenizerError: it does more than to put tokens around a text.

    """
    ids = backend.encode(_PROBE).ids
    bare = backend.encode(_PROBE, add_special_tokens=False).ids
    starts = range(len(ids) - len(bare) + 1)
    start = next((i for i in starts if ids[i : i + len(bare)] == bare), None)
    if start is None:
        raise TokenizerError(
            f"{source.fast_file} changes a text after it is split (its post_processor), which "
            "llama.cpp does not do; quantkit cannot convert this tokenizer."
        )
    return Frame(tuple(ids[:start]), tuple(ids[start + len(bare) :]))


def frame_by_flags(
    settings: Mapping[str, Any], assumed: Mapping[str, Any], ids: Mapping[str, int], where: Any
) -> Frame:
    """What the flags ``add_bos_token`` and ``add_eos_token`` say; without them nothing is added.

    Args:
        settings: tokenizer_config.json with special_tokens_map.json.
        assumed: flags and tokens where the settings have no such key.
        ids: every token's id by its text.
        where: the file or folder, for what is wrong with it.

    Raises:
        TokenizerError: a token that is to be added is in no vocabulary.

    """

    def token(kind: str) -> tuple[int, ...]:
        text, unknown = (
            token_text(settings.get(role, assumed.get(role)))
            for role in (f"{kind}_token", "unk_token")
        )
        flag = f"add_{kind}_token"
        if text is None or not settings.get(flag, assumed.get(flag)):
            return ()
        # To transformers an empty text is a token that it does not know.
        found = ids.get(text or unknown) if isinstance(text, str) else None
        if found is None:
            raise TokenizerError(
                f"{where} puts {text!r} around every text ({kind}_token), which is not a token of "
                "its vocabulary; copy the tokenizer files of one model."
            )
        return (found,)

    return Frame(token("bos"), token("eos"))


def frame_remarks(frame: Frame, source: TokenizerSource) -> list[str]:
    """Where tokenizer_config.json says otherwise, or nothing where versions then differ."""
    remarks = []
    silent = not source.fast and "add_bos_token" not in source.settings
    if source.model_file and silent and frame.before:
        remarks.append(
            "A BOS token is put before a text, as transformers 4 does; tokenizer_config.json does "
            "not say add_bos_token, and transformers 5 then puts none there."
        )
    for kind, place, ids in (("bos", "before", frame.before), ("eos", "behind", frame.after)):
        key = f"add_{kind}_token"
        flag = source.settings.get(key)
        if isinstance(flag, bool) and flag != bool(ids):
            remarks.append(
                f"The checkpoint's tokenizer puts {'a' if ids else 'no'} {kind.upper()} token "
                f"{place} a text, as transformers 5 opens it; tokenizer_config.json says {key} = "
                f"{str(flag).lower()}, and older versions may do otherwise. GGUF files follow the "
                "tokenizer."
            )
    return remarks


def frame_keys(frame: Frame, metadata: Metadata, source: TokenizerSource) -> Metadata:
    """The keys with which llama.cpp puts the same tokens around a text.

    The end of a generated text stays what the checkpoint says: where another token than that ends
    every text, the first becomes the end of a turn, as in the converter.

    Args:
        frame: what the checkpoint's own tokenizer adds.
        metadata: the keys that are written so far; those that say the same are not repeated.
        source: the tokenizer files.

    Raises:
        TokenizerError: llama.cpp cannot do it.

    """
    _require_known(frame, source)
    is_piece = metadata.get(f"{_KEY}model") == "llama"
    keys: Metadata = {}
    if metadata.get(f"{_KEY}add_bos_token", assumes_bos(metadata)) != bool(frame.before):
        keys[f"{_KEY}add_bos_token"] = bool(frame.before)
    if metadata.get(f"{_KEY}add_eos_token", False) != bool(frame.after):
        keys[f"{_KEY}add_eos_token"] = bool(frame.after)
    for kind, ids, assumed in (
        ("bos", frame.before, SENTENCEPIECE_BOS),
        ("eos", frame.after, SENTENCEPIECE_EOS),
    ):
        key = f"{_KEY}{kind}_token_id"
        named = metadata.get(key, assumed if is_piece else None)
        if ids and named != ids[0]:
            keys[key] = ids[0]
            if kind == "eos" and named is not None and f"{_KEY}eot_token_id" not in metadata:
                keys[f"{_KEY}eot_token_id"] = named
    return keys


def _require_known(frame: Frame, source: TokenizerSource) -> None:
    for ids, place in ((frame.before, "before"), (frame.after, "after")):
        if len(ids) > 1:
            raise TokenizerError(
                f"The tokenizer in {source.folder} puts {len(ids)} tokens {place} every text "
                f"({', '.join(map(str, ids))}), and llama.cpp one at most; quantkit cannot convert "
                "this tokenizer."
            )
        if ids and ids[0] >= source.vocab_size:
            raise TokenizerError(
                f"The tokenizer in {source.folder} puts the token {ids[0]} {place} every text, but "
                f"config.json says vocab_size = {source.vocab_size}; copy the tokenizer files and "
                "config.json of one model."
            )
