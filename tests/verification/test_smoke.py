import hashlib
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.core.errors import GGUFError
from quantkit.verification.smoke import smoke, time_limit
from quantkit.verification.specimen import N_VOCAB, write_specimen

UNKNOWN, NORMAL, CONTROL, USER_DEFINED, BYTE = 2, 1, 3, 4, 6  # llama.cpp's token types
ALL_PROBES = 9


@pytest.fixture
def specimen(tmp_path: Path) -> Path:
    return write_specimen(tmp_path / "specimen.gguf")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def verdict(file: Path) -> str:
    result = smoke(file)
    assert result.ok == (result.verdict == "passed")
    return result.verdict


def header_size(file: Path) -> int:
    from gguf import GGUFReader

    return int(GGUFReader(file).data_offset)


def overwrite(file: Path, tensor: str, offset: int, data: bytes) -> None:
    from gguf import GGUFReader

    [start] = [int(t.data_offset) for t in GGUFReader(file).tensors if t.name == tensor]
    with file.open("r+b") as stream:
        stream.seek(start + offset)
        stream.write(data)


# Sound models pass.


@pytest.mark.parametrize("encoding", ["F32", "F16", "Q4_0", "Q8_0", "Q4_K"])
def test_a_sound_model_passes(tmp_path: Path, encoding: str) -> None:
    result = smoke(write_specimen(tmp_path / "specimen.gguf", encoding), threads=1)
    assert result.verdict == "passed"
    assert result.ok
    assert result.tokens_per_second is not None
    assert result.tokens_per_second > 0
    assert result.load_seconds is not None
    assert result.load_seconds > 0
    assert result.text
    assert result.details["n_vocab"] == N_VOCAB
    assert result.details["round_trips"] == ALL_PROBES
    assert result.details["generated_tokens"] == 32
    assert result.details["threads"] == 1
    assert "CPU" in result.details["llama.cpp"]["system_info"]


def test_the_same_model_says_the_same_again(specimen: Path) -> None:
    assert smoke(specimen).text == smoke(specimen, threads=1).text


def test_a_path_with_spaces_and_accents(tmp_path: Path) -> None:
    folder = tmp_path / "Größe, 漢字"
    folder.mkdir()
    assert verdict(write_specimen(folder / "my model.gguf")) == "passed"


# Vocabularies.


def add_tokens(writer: Any, model: str, tokens: list[tuple[str, int]]) -> None:
    tokens = tokens + [(f"filler{i}", NORMAL) for i in range(N_VOCAB - len(tokens))]
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre("gpt-2" if model == "gpt2" else "default")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    if model == "gpt2":
        writer.add_token_merges(["h e"])


def sentencepiece(kind_of_byte_tokens: int | None) -> Callable[[Any], None]:
    def add(writer: Any) -> None:
        tokens = [("<s>", CONTROL), ("<unk>", UNKNOWN)]
        tokens += [(letter, NORMAL) for letter in "▁abcdefghijklmnopqrstuvwxyz0123456789"]
        if kind_of_byte_tokens is not None:
            tokens += [(f"<0x{i:02X}>", kind_of_byte_tokens) for i in range(256)]
        add_tokens(writer, "llama", tokens)

    return add


def byte_level(n_bytes: int = 256, kind_of_space: int = NORMAL) -> Callable[[Any], None]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the rest for U+0100 and on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(byte) for byte in own] + [chr(256 + i) for i in range(256 - len(own))]
    assert alphabet[own.index(0x21)] == "!"
    assert "Ġ" in alphabet  # the space, U+0120

    def add(writer: Any) -> None:
        kinds = {"Ġ": kind_of_space}
        tokens = [(letter, kinds.get(letter, NORMAL)) for letter in alphabet[-n_bytes:]]
        add_tokens(writer, "gpt2", [("<|endoftext|>", CONTROL), *tokens, ("he", NORMAL)])

    return add


@pytest.mark.parametrize(
    ("vocabulary", "exact_probes"),
    [
        pytest.param(sentencepiece(BYTE), ALL_PROBES, id="SentencePiece with byte fallback"),
        pytest.param(sentencepiece(None), 1, id="SentencePiece without: only what it can spell"),
        pytest.param(byte_level(), ALL_PROBES, id="byte-level BPE"),
        pytest.param(byte_level(128), 0, id="byte-level BPE that lacks the ASCII half"),
    ],
)
def test_round_trips_are_exact_wherever_the_vocabulary_can_spell_the_text(
    tmp_path: Path, vocabulary: Callable[[Any], None], exact_probes: int
) -> None:
    result = smoke(write_specimen(tmp_path / "model.gguf", add_vocabulary=vocabulary))
    assert result.verdict == "passed"
    assert result.details["round_trips"] == exact_probes


@pytest.mark.parametrize(
    "vocabulary",
    [
        pytest.param(sentencepiece(NORMAL), id="byte tokens of the wrong type"),
        pytest.param(byte_level(kind_of_space=USER_DEFINED), id="a space of the wrong type"),
    ],
)
def test_a_wrong_round_trip_fails(tmp_path: Path, vocabulary: Callable[[Any], None]) -> None:
    file = write_specimen(tmp_path / "model.gguf", add_vocabulary=vocabulary)
    assert "the token round trip is wrong" in verdict(file)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"<0x41>", b"<0x4g>", "byte tokens of its vocabulary are not the 256"),
        (b"<0x41>", b"<0x42>", "crashed with SIGABRT while loading the model (GGML_ASSERT("),
        (b"<0x41>", b"<0x4\xff>", "is not valid UTF-8"),
        (struct.pack("<f", -7), struct.pack("<f", np.nan), "Token 7 of its vocabulary has the"),
        (struct.pack("<3i", 2, 3, 3), struct.pack("<3i", 2, 9, 3), "Token 1 of its vocabulary"),
        (b"eos_token_id\4\0\0\0\2\0", b"eos_token_id\4\0\0\0\2\2", "eos token has the id 514"),
    ],
)
def test_a_damaged_vocabulary_fails(specimen: Path, old: bytes, new: bytes, reason: str) -> None:
    good = specimen.read_bytes()
    size = header_size(specimen)
    assert good[:size].count(old) == 1
    specimen.write_bytes(good[:size].replace(old, new) + good[size:])
    assert reason in verdict(specimen)


# Damaged headers.


@pytest.mark.parametrize(
    ("before", "skip"),
    [
        pytest.param(b"", 0, id="magic"),
        pytest.param(b"", 7, id="version"),
        pytest.param(b"", 8, id="tensor count"),
        pytest.param(b"", 15, id="tensor count, high byte"),
        pytest.param(b"", 16, id="metadata count"),
        pytest.param(b"", 24, id="length of a key"),
        pytest.param(b"", 40, id="letter of general.architecture"),
        pytest.param(b"general.architecture", 0, id="type of a value"),
        pytest.param(b"general.architecture", 12, id="the architecture"),
        pytest.param(b"llama.embedding_length", 4, id="embedding length"),
        pytest.param(b"llama.block_count", 4, id="block count"),
        pytest.param(b"llama.attention.head_count_kv", 4, id="KV heads"),
        pytest.param(b"llama.rope.dimension_count", 4, id="rotated dimensions"),
        pytest.param(b"tokenizer.ggml.tokens", 4, id="type of an array"),
        pytest.param(b"tokenizer.ggml.tokens", 8, id="length of the token list"),
        pytest.param(b"tokenizer.ggml.token_type", 8, id="length of the token types"),
        pytest.param(b"tokenizer.ggml.mode", 1, id="a required key"),
        pytest.param(b"blk.0.attn_k.w", 1, id="a tensor's name"),
        pytest.param(b"blk.0.attn_k.weight", 0, id="a tensor's dimensions"),
        pytest.param(b"blk.0.attn_k.weight", 4, id="a tensor's columns"),
        pytest.param(b"blk.0.attn_k.weight", 13, id="a tensor's rows, second byte"),
        pytest.param(b"blk.0.attn_k.weight", 20, id="a tensor's type"),
        pytest.param(b"blk.0.attn_k.weight", 24, id="a tensor's offset"),
    ],
)
def test_a_flipped_byte_in_the_structure_fails(specimen: Path, before: bytes, skip: int) -> None:
    data = bytearray(specimen.read_bytes())
    data[data.index(before) + len(before) + skip] ^= 1
    specimen.write_bytes(data)
    assert not smoke(specimen).ok


def test_every_flipped_byte_fails_against_the_manifest(tmp_path: Path) -> None:
    """Values such as the rope base or a token's score have nothing to be checked against."""
    file = write_specimen(tmp_path / "specimen.gguf", "Q4_0")
    expected = {file.name: (file.stat().st_size, sha256(file))}
    good = file.read_bytes()
    with file.open("r+b", buffering=0) as stream:
        for position in [*range(0, header_size(file), 11), len(good) - 1]:
            stream.seek(position)
            stream.write(bytes([good[position] ^ 1 << position % 8]))
            result = smoke(file, expected=expected)
            assert re.search(r"is not as it was built: its sha256 is \w+", result.verdict), position
            stream.seek(position)
            stream.write(good[position : position + 1])
    assert smoke(file, expected=expected).ok


def test_sums_of_other_files_are_not_compared(specimen: Path) -> None:
    assert smoke(specimen, expected={"other.gguf": (1, "0" * 64)}).ok


def test_a_file_of_another_size_is_not_read(
    specimen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 20 GB of nothing would be for a minute."""
    expected = {specimen.name: (specimen.stat().st_size, sha256(specimen))}
    os.truncate(specimen, 20 * 10**9)
    monkeypatch.delattr("hashlib.file_digest")
    result = smoke(specimen, expected=expected)
    assert re.search(r"is not as it was built: it has 20,000,000,000 bytes", result.verdict)


# Damaged sizes and weights.


def test_a_truncated_file_fails(specimen: Path) -> None:
    good, header = specimen.read_bytes(), header_size(specimen)
    for size, reason in (
        (0, "broken header"),
        (22, "broken header"),
        (header // 2, "broken header"),
        (header, "it is truncated"),
        (len(good) // 2, "it is truncated"),
        (len(good) - 1, "it is truncated"),
    ):
        specimen.write_bytes(good[:size])
        assert reason in verdict(specimen), size


def test_a_file_with_something_appended_fails(specimen: Path) -> None:
    specimen.write_bytes(specimen.read_bytes() + b"\0" * 32)
    assert "something was appended" in verdict(specimen)


NAN_16, INFINITY_16, NAN_32 = b"\x00\x7e", b"\x00\x7c", b"\x00\x00\xc0\x7f"


@pytest.mark.parametrize(
    ("encoding", "tensor", "offset", "value"),
    [
        ("Q8_0", "blk.0.attn_q.weight", 0, NAN_16),
        ("Q8_0", "output.weight", 34 * 100, INFINITY_16),
        ("Q4_0", "token_embd.weight", 18 * 7, NAN_16),
        ("Q4_K", "blk.0.ffn_down.weight", 0, NAN_16),
        ("Q4_K", "blk.0.ffn_down.weight", 144 * 255 + 2, NAN_16),
        ("F16", "blk.0.ffn_up.weight", 2 * 999, NAN_16),
        ("Q8_0", "blk.0.attn_norm.weight", 4 * 31, NAN_32),
        ("Q8_0", "output_norm.weight", 0, NAN_32),
    ],
)
def test_nan_and_infinity_in_the_weights_fail(
    tmp_path: Path, encoding: str, tensor: str, offset: int, value: bytes
) -> None:
    file = write_specimen(tmp_path / "specimen.gguf", encoding)
    overwrite(file, tensor, offset, value)
    assert f"tensor '{tensor}' has NaN or infinite weights or scales" in verdict(file)


def test_logits_that_overflow_fail(tmp_path: Path) -> None:
    file = write_specimen(tmp_path / "specimen.gguf", "F32")
    huge = np.full(256, 3e38, np.float32)  # finite, so only computing with it shows
    overwrite(file, "output_norm.weight", 0, huge.tobytes())
    overwrite(file, "output.weight", 0, huge.tobytes())
    assert "NaN or infinite logits" in verdict(file)
    assert "after prompt token 1." in verdict(file)


def test_logits_that_say_nothing_fail(tmp_path: Path) -> None:
    file = write_specimen(tmp_path / "specimen.gguf", "F32")
    overwrite(file, "output_norm.weight", 0, bytes(4 * 256))
    assert "the same logit for every token" in verdict(file)


# Time, shards, absent files.


def test_a_model_that_takes_too_long_fails(specimen: Path) -> None:
    result = smoke(specimen, timeout=0)  # time: none, which is too little anywhere
    assert not result.ok
    assert result.verdict == "llama.cpp timed out after 0 s while starting."


def test_the_time_limit_grows_with_the_size() -> None:
    assert time_limit(0) == 60
    assert time_limit(80_000_000_000) == 1660


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    write_specimen(tmp_path / "model.gguf", split_max_tensors=6)
    return sorted(tmp_path.glob("model-0000?-of-00002.gguf"))


def test_a_split_model_passes_from_its_first_shard(shards: list[Path]) -> None:
    assert len(shards) == 2
    assert smoke(
        shards[0], expected={file.name: (file.stat().st_size, sha256(file)) for file in shards}
    ).ok


def test_a_damaged_second_shard_fails(shards: list[Path]) -> None:
    expected = {file.name: (file.stat().st_size, sha256(file)) for file in shards}
    shards[1].write_bytes(shards[1].read_bytes()[:-32])
    assert "model-00002-of-00002.gguf has" in verdict(shards[0])
    result = smoke(shards[0], expected=expected)
    assert "model-00002-of-00002.gguf is not as it was built" in result.verdict


def test_a_missing_shard_is_named(shards: list[Path]) -> None:
    shards[1].unlink()
    with pytest.raises(GGUFError, match=r"model-00002-of-00002\.gguf does not exist"):
        smoke(shards[0])


def test_a_later_shard_is_refused(shards: list[Path]) -> None:
    with pytest.raises(GGUFError, match=r"give the first one, model-00001-of-00002\.gguf"):
        smoke(shards[1])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"nothing\.gguf does not exist"):
        smoke(tmp_path / "nothing.gguf")
