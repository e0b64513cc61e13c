"""Small GGUFs with random weights, one for each way in which models remember what they read.

Their tensors are what llama.cpp's ``src/models/*.cpp`` ask for, under the names of
``src/llama-arch.cpp``.
"""

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from quantkit.checkpoint.gguf import parse_header
from tests.gguf_keys import add_key

_VOCAB, _HIDDEN = 512, 64
Shapes = dict[str, tuple[int, ...]]


def _write(
    path: Path, arch: str, keys: Mapping[str, Any], shapes: Shapes, *, hollow: bool = False
) -> Path:
    """A GGUF of an architecture; ``keys`` lack its name. A hollow one has a hole for weights."""
    writer = GGUFWriter(path, arch)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(_VOCAB)
    for key, value in keys.items():
        name = key if key.startswith("tokenizer.") else f"{arch}.{key}"
        add_key(writer, name, value)
    numbers = np.random.default_rng(1)
    for name, shape in shapes.items():
        is_float = len(shape) == 1 or any(part in name for part in ("ssm_a", "conv1d", "gate_inp"))
        kind = np.dtype(np.float32 if is_float else np.float16)
        if hollow:
            writer.add_tensor_info(name, shape, kind, prod(shape) * kind.itemsize)
        else:
            writer.add_tensor(name, numbers.normal(0, 0.02, shape).astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if hollow:
        writer.write_ti_data_to_file()
    else:
        writer.write_tensors_to_file()
    writer.close()
    if hollow:
        start = parse_header(path.read_bytes(), 2**50)
        assert start is not None
        last = max(tensor.offset + tensor.n_bytes for tensor in start.tensors)
        with path.open("r+b") as file:
            file.truncate(start.data_offset + last)
    return path


def _norms(prefix: str, *names: str, width: int = _HIDDEN) -> Shapes:
    return {f"{prefix}{name}.weight": (width,) for name in names}


def _ends(*, tied: bool = False) -> Shapes:
    shapes: Shapes = {"token_embd.weight": (_VOCAB, _HIDDEN), "output_norm.weight": (_HIDDEN,)}
    return shapes if tied else {**shapes, "output.weight": (_VOCAB, _HIDDEN)}


def _dense(prefix: str, wide: int, *, gated: bool = True) -> Shapes:
    shapes: Shapes = {
        f"{prefix}ffn_up.weight": (wide, _HIDDEN),
        f"{prefix}ffn_down.weight": (_HIDDEN, wide),
    }
    return {**shapes, f"{prefix}ffn_gate.weight": (wide, _HIDDEN)} if gated else shapes


def recurrent(path: Path, *, hidden: int = _HIDDEN, layers: int = 3, hollow: bool = False) -> Path:
    """A Mamba: states and no cache."""
    inner, state, rank = 2 * hidden, 16, 4
    keys = {
        "context_length": 4096, "embedding_length": hidden, "block_count": layers,
        "feed_forward_length": 0, "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": 1e-5, "ssm.conv_kernel": 4, "ssm.inner_size": inner,
        "ssm.state_size": state, "ssm.time_step_rank": rank,
    }  # fmt: skip
    shapes: Shapes = {"token_embd.weight": (_VOCAB, hidden), "output_norm.weight": (hidden,)}
    for layer in range(layers):
        at = f"blk.{layer}."
        shapes |= _norms(at, "attn_norm", width=hidden) | {
            f"{at}ssm_in.weight": (2 * inner, hidden),
            f"{at}ssm_conv1d.weight": (inner, 4),
            f"{at}ssm_conv1d.bias": (inner,),
            f"{at}ssm_x.weight": (rank + 2 * state, inner),
            f"{at}ssm_dt.weight": (inner, rank),
            f"{at}ssm_dt.bias": (inner,),
            f"{at}ssm_a": (inner, state),
            f"{at}ssm_d": (inner,),
            f"{at}ssm_out.weight": (hidden, inner),
        }
    return _write(path, "mamba", keys, shapes, hollow=hollow)


def windowed(path: Path) -> Path:
    """A Gemma 3 of seven layers, of which all but one look back over 600 tokens."""
    heads, kv_heads, length = 4, 2, 32
    keys = {
        "context_length": 32768, "embedding_length": _HIDDEN, "block_count": 7,
        "feed_forward_length": 128, "attention.head_count": heads,
        "attention.head_count_kv": kv_heads, "attention.key_length": length,
        "attention.value_length": length, "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": 600, "rope.freq_base": 1e6,
    }  # fmt: skip
    shapes = _ends(tied=True)
    for layer in range(7):
        at = f"blk.{layer}."
        shapes |= _norms(at, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        shapes |= _norms(at, "attn_q_norm", "attn_k_norm", width=length) | _dense(at, 128)
        shapes |= {
            f"{at}attn_q.weight": (heads * length, _HIDDEN),
            f"{at}attn_k.weight": (kv_heads * length, _HIDDEN),
            f"{at}attn_v.weight": (kv_heads * length, _HIDDEN),
            f"{at}attn_output.weight": (_HIDDEN, heads * length),
        }
    return _write(path, "gemma3", keys, shapes)


def latent(path: Path) -> Path:
    """A DeepSeek 2: keys and values of rank 64, a dense layer, two of experts, one to draft."""
    heads, rank, rotary, plain, experts, wide = 4, 64, 32, 32, 8, 32
    keys = {
        "context_length": 8192, "embedding_length": _HIDDEN, "block_count": 4,
        "nextn_predict_layers": 1, "feed_forward_length": 128, "attention.head_count": heads,
        "attention.head_count_kv": 1, "attention.key_length": rank + rotary,
        "attention.value_length": rank, "attention.key_length_mla": plain + rotary,
        "attention.value_length_mla": plain, "attention.kv_lora_rank": rank,
        "attention.q_lora_rank": 32, "rope.dimension_count": rotary,
        "attention.layer_norm_rms_epsilon": 1e-6, "leading_dense_block_count": 1,
        "expert_count": experts, "expert_used_count": 2, "expert_shared_count": 1,
        "expert_feed_forward_length": wide, "expert_weights_scale": 1.0,
    }  # fmt: skip
    shapes = _ends()
    for layer in range(4):
        at = f"blk.{layer}."
        shapes |= _norms(at, "attn_norm", "ffn_norm") | _norms(at, "attn_q_a_norm", width=32)
        shapes |= _norms(at, "attn_kv_a_norm", width=rank) | {
            f"{at}attn_q_a.weight": (32, _HIDDEN),
            f"{at}attn_q_b.weight": (heads * (plain + rotary), 32),
            f"{at}attn_kv_a_mqa.weight": (rank + rotary, _HIDDEN),
            f"{at}attn_k_b.weight": (heads, rank, plain),
            f"{at}attn_v_b.weight": (heads, plain, rank),
            f"{at}attn_output.weight": (_HIDDEN, heads * plain),
        }
        if not layer:
            shapes |= _dense(at, 128)
            continue
        shapes |= {
            f"{at}ffn_gate_inp.weight": (experts, _HIDDEN),
            f"{at}ffn_up_exps.weight": (experts, wide, _HIDDEN),
            f"{at}ffn_gate_exps.weight": (experts, wide, _HIDDEN),
            f"{at}ffn_down_exps.weight": (experts, _HIDDEN, wide),
            f"{at}ffn_up_shexp.weight": (wide, _HIDDEN),
            f"{at}ffn_gate_shexp.weight": (wide, _HIDDEN),
            f"{at}ffn_down_shexp.weight": (_HIDDEN, wide),
        }
    shapes |= {"blk.3.nextn.eh_proj.weight": (_HIDDEN, 2 * _HIDDEN)}
    shapes |= _norms("blk.3.nextn.", "enorm", "hnorm")
    return _write(path, "deepseek2", keys, shapes)


def embedding(path: Path) -> Path:
    """A BERT: it remembers nothing, and sees a text at once."""
    keys = {
        "context_length": 2048, "embedding_length": _HIDDEN, "block_count": 2,
        "feed_forward_length": 128, "attention.head_count": 4,
        "attention.layer_norm_epsilon": 1e-12, "attention.causal": False, "pooling_type": 1,
        "tokenizer.ggml.token_type_count": 2,
    }  # fmt: skip
    shapes: Shapes = {
        "token_embd.weight": (_VOCAB, _HIDDEN),
        "token_types.weight": (2, _HIDDEN),
        "position_embd.weight": (2048, _HIDDEN),
        "token_embd_norm.weight": (_HIDDEN,),
        "token_embd_norm.bias": (_HIDDEN,),
    }
    for layer in range(2):
        at = f"blk.{layer}."
        shapes |= _norms(at, "attn_output_norm", "layer_output_norm") | _dense(at, 128, gated=False)
        shapes |= {f"{at}{norm}.bias": (_HIDDEN,) for norm in ("attn_output_norm",)}
        shapes |= {f"{at}layer_output_norm.bias": (_HIDDEN,)}
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"{at}{name}.weight"] = (_HIDDEN, _HIDDEN)
            shapes[f"{at}{name}.bias"] = (_HIDDEN,)
    return _write(path, "bert", keys, shapes)


def translating(path: Path) -> Path:
    """A T5: two layers that read a text and two that write another."""
    keys = {
        "context_length": 512, "embedding_length": _HIDDEN, "block_count": 2,
        "decoder_block_count": 2, "feed_forward_length": 128, "attention.head_count": 4,
        "attention.key_length": 16, "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": 1e-6, "attention.layer_norm_epsilon": 1e-6,
        "attention.relative_buckets_count": 32, "decoder_start_token_id": 0,
    }  # fmt: skip
    shapes: Shapes = {
        "token_embd.weight": (_VOCAB, _HIDDEN),
        "enc.output_norm.weight": (_HIDDEN,),
        "dec.output_norm.weight": (_HIDDEN,),
    }
    for side, count in (("enc", 2), ("dec", 2)):
        for layer in range(count):
            at = f"{side}.blk.{layer}."
            kinds = ("attn", "cross_attn") if side == "dec" else ("attn",)
            shapes |= _norms(at, "ffn_norm", *(f"{kind}_norm" for kind in kinds)) | _dense(at, 128)
            if not layer:
                shapes[f"{at}attn_rel_b.weight"] = (32, 4)
            for attention in kinds:
                for matrix in ("q", "k", "v", "o"):
                    shapes[f"{at}{attention}_{matrix}.weight"] = (_HIDDEN, _HIDDEN)
    return _write(path, "t5", keys, shapes)


KINDS: dict[str, Callable[..., Path]] = {
    "recurrent": recurrent,
    "windowed": windowed,
    "latent": latent,
    "embedding": embedding,
    "translating": translating,
}
