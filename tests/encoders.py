"""Tiny unquantized GGUFs of models that do not go on with a text: a BERT, and a T5."""

import string
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, PoolingType, TokenType
from gguf.quants import quantize
from numpy.typing import NDArray

WIDTH, FF, HEADS, CONTEXT = 128, 256, 4, 128
_WORDS = ("the", "of", "and", "river", "town", "bank", "flour", "hour", "add", "rest", "python")
_SIGNS = string.ascii_lowercase + string.digits + string.punctuation
_NORMAL, _CONTROL, _UNKNOWN = TokenType.NORMAL, TokenType.CONTROL, TokenType.UNKNOWN

Values = NDArray[np.float32]


def tiny_bert(path: Path, *, pooling: int | None = 1) -> Path:
    """Two layers, WordPiece with small letters only; ``pooling`` as llama.cpp numbers it."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # llama.cpp marks the pieces that begin a word.
    pieces = [*(f"\u2581{sign}" for sign in _SIGNS), *string.ascii_lowercase + string.digits]
    tokens = [*special, *(f"\u2581{word}" for word in _WORDS), *pieces]
    writer = _begin(path, "bert", tokens, [_CONTROL] * len(special), pre="default")
    writer.add_causal_attention(False)
    writer.add_layer_norm_eps(1e-12)
    if pooling is not None:
        writer.add_pooling_type(PoolingType(pooling))
    writer.add_token_type_count(2)
    for name, token in (("bos", 2), ("eos", 3), ("unk", 1), ("sep", 3), ("pad", 0), ("mask", 4)):
        getattr(writer, f"add_{name}_token_id")(token)
    shapes = {
        "token_embd.weight": (len(tokens), WIDTH),
        "token_types.weight": (2, WIDTH),
        "position_embd.weight": (CONTEXT, WIDTH),
        **_norm("token_embd_norm", bias=True),
    }
    for layer in ("blk.0.", "blk.1."):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes |= {f"{layer}{name}.weight": (WIDTH, WIDTH), f"{layer}{name}.bias": (WIDTH,)}
        shapes |= {
            f"{layer}ffn_up.weight": (FF, WIDTH),
            f"{layer}ffn_up.bias": (FF,),
            f"{layer}ffn_down.weight": (WIDTH, FF),
            f"{layer}ffn_down.bias": (WIDTH,),
            **_norm(f"{layer}attn_output_norm", bias=True),
            **_norm(f"{layer}layer_output_norm", bias=True),
        }
    return _end(writer, path, shapes, small=("position_embd", "token_types"))


def tiny_t5(path: Path) -> Path:
    """One layer of an encoder and one of a decoder, Unigram."""
    special = ["<pad>", "</s>", "<unk>"]
    tokens = [*special, "\u2581", *(f"\u2581{word}" for word in _WORDS), *_SIGNS]
    tokens += string.ascii_uppercase
    writer = _begin(path, "t5", tokens, [_CONTROL, _CONTROL, _UNKNOWN])
    writer.add_token_scores([0.0, 0.0, -20.0, *(-float(2 + i % 9) for i in range(len(tokens) - 3))])
    writer.add_decoder_block_count(1)
    writer.add_decoder_start_token_id(0)
    writer.add_relative_attn_buckets_count(32)
    writer.add_key_length(WIDTH // HEADS)
    writer.add_value_length(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_add_eos_token(True)
    for name, token in (("bos", 0), ("eos", 1), ("unk", 2), ("pad", 0)):
        getattr(writer, f"add_{name}_token_id")(token)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(tokens), WIDTH)}
    for part, attentions in (("enc", ("attn",)), ("dec", ("attn", "cross_attn"))):
        layer = f"{part}.blk.0."
        for attention in attentions:
            shapes |= {f"{layer}{attention}_{m}.weight": (WIDTH, WIDTH) for m in "qkvo"}
            shapes |= _norm(f"{layer}{attention}_norm")
        shapes |= {
            f"{layer}attn_rel_b.weight": (32, HEADS),
            f"{layer}ffn_gate.weight": (FF, WIDTH),
            f"{layer}ffn_up.weight": (FF, WIDTH),
            f"{layer}ffn_down.weight": (WIDTH, FF),
            **_norm(f"{layer}ffn_norm"),
            **_norm(f"{part}.output_norm"),
        }
    return _end(writer, path, shapes, small=("attn_rel_b",))


def _begin(
    path: Path, arch: str, tokens: list[str], kinds: list[TokenType], pre: str = "default"
) -> GGUFWriter:
    writer = GGUFWriter(path, arch)
    writer.add_type("model")
    writer.add_name(path.stem)
    writer.add_block_count(2 if arch == "bert" else 1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_file_type(32)  # bf16
    writer.add_quantization_version(2)
    writer.add_tokenizer_model(arch)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([*kinds, *[_NORMAL] * (len(tokens) - len(kinds))])
    return writer


def _norm(name: str, *, bias: bool = False) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (WIDTH,) for part in (("weight", "bias") if bias else ("weight",))}


def _end(
    writer: GGUFWriter,
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    small: tuple[str, ...],
) -> Path:
    """Random weights, which the converter would store in such types."""
    rng = np.random.default_rng(7)
    for name, shape in shapes.items():
        values: Values = rng.standard_normal(shape, np.float32) * np.float32(0.1)
        if name.endswith("norm.weight"):
            values += 1
        if len(shape) == 1 or any(part in name for part in small):
            writer.add_tensor(name, values)
        else:
            bf16 = GGMLQuantizationType.BF16
            writer.add_tensor(name, quantize(values, bf16), raw_dtype=bf16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
