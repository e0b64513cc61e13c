"""A tiny GGUF model with random weights, to see what llama.cpp does on this machine.

One llama layer, 256 wide, with a SentencePiece vocabulary of 320 tokens: half a megabyte as Q8_0.
Large enough that llama.cpp sends its matrices through every special CPU path it knows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH = 256
N_VOCAB = 320
_N_HEAD, _N_HEAD_KV = 4, 2

# Bytes of a block, and the float16 scales in it: byte offset and a value that gives the random
# bytes around it weights of about 0.06. Layouts: the block structs of ``ggml-common.h``.
_BLOCKS: dict[str, tuple[int, dict[int, float]]] = {
    "Q4_0": (18, {0: 0.013}),
    "Q8_0": (34, {0: 0.0008}),
    "Q4_K": (144, {0: 0.0002, 2: 0.0015}),
}


def write_specimen(
    file: Path,
    encoding: str = "Q8_0",
    *,
    add_vocabulary: Callable[[Any], None] | None = None,
    n_vocab: int = N_VOCAB,
    split_max_tensors: int = 0,
) -> Path:
    """Write the specimen with its matrices in ``encoding``.

    Args:
        file: where; the names of shards are made from it.
        encoding: F32, F16, Q4_0, Q8_0 or Q4_K.
        add_vocabulary: puts ``n_vocab`` tokens into a ``gguf.GGUFWriter``; by default a
            SentencePiece vocabulary with byte fallback.
        n_vocab: rows of the embeddings.
        split_max_tensors: tensors per shard; 0 for one file.

    """
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(file, "llama", split_max_tensors=split_max_tensors)
    writer.add_name("specimen")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(_N_HEAD)
    writer.add_head_count_kv(_N_HEAD_KV)
    writer.add_rope_dimension_count(WIDTH // _N_HEAD)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    (add_vocabulary or _add_sentencepiece)(writer)
    rng = np.random.default_rng(1)
    for name, rows in _matrices(n_vocab).items():
        data = _random_rows(rng, rows, encoding)
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[encoding])
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _matrices(n_vocab: int) -> dict[str, int]:
    """Rows of each matrix; all have ``WIDTH`` columns."""
    kv_rows = WIDTH // _N_HEAD * _N_HEAD_KV
    layer = {"attn_q": WIDTH, "attn_k": kv_rows, "attn_v": kv_rows, "attn_output": WIDTH}
    layer |= {"ffn_gate": WIDTH, "ffn_up": WIDTH, "ffn_down": WIDTH}
    return {"token_embd.weight": n_vocab, "output.weight": n_vocab} | {
        f"blk.0.{role}.weight": rows for role, rows in layer.items()
    }


def _random_rows(rng: np.random.Generator, rows: int, encoding: str) -> NDArray[Any]:
    if encoding in ("F32", "F16"):
        weights = rng.normal(0, 0.06, (rows, WIDTH))
        return weights.astype(np.float32 if encoding == "F32" else np.float16)
    n_bytes, scales = _BLOCKS[encoding]
    elements = 256 if encoding.endswith("_K") else 32
    blocks = rng.integers(0, 256, (rows, WIDTH // elements, n_bytes), np.uint8)
    for offset, scale in scales.items():
        blocks[..., offset : offset + 2] = np.array([scale], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def _add_sentencepiece(writer: Any) -> None:
    unknown, normal, control, byte = 2, 1, 3, 6  # llama.cpp's token types
    special = [("<unk>", unknown), ("<s>", control), ("</s>", control)]
    fallback = [(f"<0x{i:02X}>", byte) for i in range(256)]
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    words = ["▁t", "th", "he", "▁the", "in", "an", "er", "on"]
    pieces = [(piece, normal) for piece in [*letters, *words]]
    tokens = [*special, *fallback, *pieces]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
