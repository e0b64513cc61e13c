"""Weights as Mistral releases them: ``params.json`` beside ``consolidated.*``.

They are shown as the Hugging Face checkpoint that they would be converted to: its names, its
config.json, its order of rotary rows. What is small is written to a temporary folder, weights are
read where they lie. Names and layouts: the releases themselves and mistral-inference's
``transformer_layers.py`` and ``moe.py``; the stacked layout is megablocks', whose ``w2`` holds
each expert's transposed.
"""

import atexit
import json
import re
import reprlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.folder import read_json
from quantkit.checkpoint.names import PARAMS, folder_name, raw_weight_files
from quantkit.checkpoint.pth import read_pth
from quantkit.checkpoint.raw_tokenizer import add_tokenizer_files
from quantkit.checkpoint.rows import Joined, View, ViewReader, file_order, read_stored
from quantkit.checkpoint.safetensors import only_floats, read_header
from quantkit.core.apart import run_apart
from quantkit.core.errors import CheckpointError, TokenizerError
from quantkit.core.printable import quoted
from quantkit.core.tensors import TORCH_NAMES, SourceTensor
from quantkit.core.writing import replace_file
from quantkit.families import describe
from quantkit.families.model import Decoder

_PARTS = (
    (r"model\.embed_tokens\.", "tok_embeddings."),
    (r"model\.norm\.", "norm."),
    (r"lm_head\.", "output."),
    (r"model\.layers\.", "layers."),
    (r"\.self_attn\.(.)_proj\.", r".attention.w\1."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.mlp\.gate_proj\.", ".feed_forward.w1."),
    (r"\.mlp\.down_proj\.", ".feed_forward.w2."),
    (r"\.mlp\.up_proj\.", ".feed_forward.w3."),
    (r"\.block_sparse_moe\.", ".feed_forward."),
)
_EXPERT = re.compile(r"model(\.layers\.\d+\.block_sparse_moe\.)experts\.(\d+)\.(w[123])\.weight")
_IGNORED = ("rope.freqs",)
_COPIES_COMPARED = 16 * 2**20  # bytes of a tensor that every shard has: norms, routers

# What the releases leave unsaid: mistral-inference's rope base for models without and with a
# window, and the context of the 7B and 8x7B.
_THETA, _THETA_WITH_WINDOW = 1e6, 1e4
_CONTEXT = 32768
_TOKENIZER_SECONDS = 120

# What becomes of the keys of params.json: those that _config reads, those that change nothing, and
# those of which only certain values can be built. Any other goes into config.json as it is, where
# the family names it in a remark.
_READ = {
    "dim", "hidden_size", "hidden_dim", "intermediate_size", "n_layers", "num_hidden_layers",
    "n_heads", "num_attention_heads", "n_kv_heads", "num_key_value_heads", "head_dim", "norm_eps",
    "rms_norm_eps", "rope_theta", "sliding_window", "vocab_size", "max_seq_len",
    "max_position_embeddings", "tied_embeddings", "moe", "num_local_experts",
    "num_experts_per_tok", "yarn",
}  # fmt: skip
_HARMLESS = {"max_batch_size", "model_parallel", "model_type", "dtype", "torch_dtype", "lora"}
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "causal": (True, None),
    "attn_bias": (False, None),
    "use_biases": (False, None),
    "mlp_bias": (False, None),
    "llama_4_scaling": (None,),
    "vision_encoder": (None,),
    "multimodal": (None,),
    "quantization": (None,),
    "qk_norm": (False, None),
    "q_norm": (False, None),
    "k_norm": (False, None),
    "softcap": (0, None),
    "q_lora_rank": (None,),
    "kv_lora_rank": (None,),
    "use_scaled_rope": (False, None),
    "rope_scaling_factor": (1, None),
    "activation": ("silu", "swish", None),
    "hidden_act": ("silu", "swish", None),
}
_MOE_READ = {"num_experts", "num_experts_per_tok"}
_MOE_ONLY: Mapping[str, tuple[Any, ...]] = {
    "first_k_dense_replace": (0, None),
    "num_shared_experts": (0, None),
    "expert_hidden_dim": (None,),
    "num_expert_groups": (0, 1, None),
    "num_expert_groups_per_tok": (0, 1, None),
    "routed_scale": (1, None),
    "route_every_n": (1, None),
    "expert_parallel": (1, None),
    "expert_model_parallel": (1, None),
}
_YARN = {"factor", "original_max_position_embeddings", "alpha", "beta", "apply_scale"}


def open_raw_mistral(path: Path) -> Checkpoint:
    """Open a folder of raw weights, from its headers.

    Raises:
        CheckpointError: it is incomplete, damaged, or not what params.json says.
        TokenizerError: it has no tokenizer that can be used.

    """
    names = sorted(entry.name for entry in path.iterdir())
    files = tuple(path / name for name in raw_weight_files(names))
    raw: dict[str, list[SourceTensor]] = {}
    for file in files:
        is_plain = file.suffix == ".safetensors"
        header = read_header(file) if is_plain else only_floats(read_pth(file))
        for name, tensor in header.items():
            raw.setdefault(name, []).append(tensor)
    config = _config(path / PARAMS, raw)
    model = describe(config, _known_names(raw))
    views = _views(path, model, raw)
    starts = file_order(views)
    tensors = {}
    for name, shape in model.sources.items():
        file, offset = starts[name]
        first = views[name].raw.pieces[0]
        whole = SourceTensor(name, first.dtype, shape, file, offset, 0)
        size = whole.n_elements * whole.row_bytes // shape[-1]
        tensors[name] = SourceTensor(name, first.dtype, shape, file, offset, size)
    folder, token_ids = _small_files(path)
    config |= token_ids | {"torch_dtype": TORCH_NAMES[tensors["model.embed_tokens.weight"].dtype]}
    replace_file(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    return Checkpoint(folder, config, tensors, files, read_rows=ViewReader(views))


def _known_names(raw: Mapping[str, object]) -> list[str]:
    """What a family asks of names: whether lm_head is there."""
    return ["lm_head.weight"] if "output.weight" in raw else []


def _config(path: Path, raw: Mapping[str, Sequence[SourceTensor]]) -> dict[str, Any]:
    """config.json as params.json gives it. Some releases have transformers' names already."""
    params = read_json(path)
    moe = params.get("moe") or {}
    if not isinstance(moe, dict):
        raise CheckpointError(f"{path}: moe is not an object; download it again.")
    _check_params(path, params, _ONLY)
    _check_params(path, moe, _MOE_ONLY)
    if strange := sorted(moe.keys() - _MOE_READ - _MOE_ONLY.keys()):
        raise CheckpointError(f"{path}: moe has {strange[0]}, which quantkit does not know.")

    def first(*keys: str, default: Any = None) -> Any:
        return next((params[key] for key in keys if params.get(key) is not None), default)

    experts = moe.get("num_experts") or params.get("num_local_experts")
    heads, hidden = first("n_heads", "num_attention_heads"), first("dim", "hidden_size")
    window = first("sliding_window")
    if isinstance(window, str) and window.isdecimal():
        window = int(window)
    vocabulary = first("vocab_size")
    if not isinstance(vocabulary, int) or vocabulary < 1:
        rows = [tensor.shape[0] for tensor in raw.get("tok_embeddings.weight", ())]
        vocabulary = rows[0] if rows else None
    config = {
        "architectures": ["MixtralForCausalLM" if experts else "MistralForCausalLM"],
        "model_type": "mixtral" if experts else "mistral",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": first("hidden_dim", "intermediate_size"),
        "max_position_embeddings": first(
            "max_position_embeddings", "max_seq_len", default=_CONTEXT
        ),
        "num_attention_heads": heads,
        "num_hidden_layers": first("n_layers", "num_hidden_layers"),
        "num_key_value_heads": first("n_kv_heads", "num_key_value_heads", default=heads),
        "rms_norm_eps": first("norm_eps", "rms_norm_eps", default=1e-5),
        "rope_theta": first("rope_theta", default=_THETA_WITH_WINDOW if window else _THETA),
        "sliding_window": window,
        "tie_word_embeddings": bool(first("tied_embeddings", default="output.weight" not in raw)),
        "vocab_size": vocabulary,
    }
    head_dim = first("head_dim")
    countable = all(isinstance(number, int) for number in (head_dim, heads, hidden))
    if head_dim is not None and not (countable and head_dim * heads == hidden):
        config["head_dim"] = head_dim
    if experts:
        used = moe.get("num_experts_per_tok") or params.get("num_experts_per_tok")
        config |= {"num_local_experts": experts, "num_experts_per_tok": used}
    if yarn := params.get("yarn"):
        config["rope_scaling"] = _yarn(path, yarn)
    known = _READ | _HARMLESS | _ONLY.keys()
    config |= {key: value for key, value in params.items() if key not in known | config.keys()}
    wanting = [key for key, value in config.items() if value is None and key != "sliding_window"]
    if wanting == ["intermediate_size"] and "dim" in params:
        raise CheckpointError(
            f"{path} is Meta's own release of a Llama, whose layout quantkit does not read; take "
            "its repository in transformers' format (its name ends in -hf, or it has a "
            "config.json), or convert it with transformers' convert_llama_weights_to_hf."
        )
    if wanting:
        raise CheckpointError(
            f"{path} does not say {wanting[0]}; take params.json from the original release."
        )
    return config


def _check_params(path: Path, params: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Refuse what a GGUF would compute otherwise than the release.

    Raises:
        CheckpointError: a key has such a value.

    """
    for key, values in only.items():
        if key in params and params[key] not in values:
            raise CheckpointError(
                f"{path} says {key} = {reprlib.repr(params[key])}, which quantkit cannot build."
            )


def _yarn(path: Path, yarn: Any) -> dict[str, Any]:
    """The block of params.json in transformers' words.

    Without ``apply_scale`` sine and cosine keep their size (``set_mistral_config`` in llama.cpp's
    ``conversion/mistral.py``, which says so by ``mscale_all_dim``).

    Raises:
        CheckpointError: a number is missing, or there is another.

    """
    if not isinstance(yarn, dict) or yarn.keys() != _YARN:
        raise CheckpointError(
            f"{path}: yarn must have {', '.join(sorted(_YARN))} and nothing else; take params.json "
            "from the original release."
        )
    return {
        "rope_type": "yarn",
        "factor": yarn["factor"],
        "original_max_position_embeddings": yarn["original_max_position_embeddings"],
        "beta_fast": yarn["beta"],
        "beta_slow": yarn["alpha"],
        **({} if yarn["apply_scale"] else {"attention_factor": 1.0}),
    }


def _views(path: Path, model: Decoder, raw: Mapping[str, list[SourceTensor]]) -> dict[str, View]:
    """Where each tensor of a model lies in the raw weights; none of them is left over."""
    heads = {
        target.blocks[0].source: target.shape[0] // target.rope_heads
        for target in model.targets
        if target.rope_heads and len(target.shape) > 1
    }
    experts = model.hparams.num_local_experts
    used: set[str] = set(_IGNORED)
    joined: dict[str, Joined] = {}

    def join(name: str, shape: tuple[int, ...]) -> Joined:
        used.add(name)
        if name not in joined:
            joined[name] = _join(path, name, raw[name], shape)
        return joined[name]

    views = {}
    for name, shape in model.sources.items():
        own = _raw_name(name)
        expert = _EXPERT.fullmatch(name)
        stacked = f"{expert[1]}{expert[3]}".removeprefix(".") if expert else ""
        if own in raw:
            views[name] = View(join(own, shape), head_dim=heads.get(name, 0))
        elif expert and stacked in raw:
            transposed = expert[3] == "w2"
            rows, columns = reversed(shape) if transposed else shape
            whole = join(stacked, (experts * rows, columns))
            views[name] = View(whole, int(expert[2]) * rows, transposed, rows)
        elif (router := own.replace(".feed_forward.", ".block_sparse_moe.")) in raw:
            views[name] = View(join(router, shape))
        else:
            raise CheckpointError(
                f"{path} lacks {quoted(own)}; download it again, with all its consolidated files."
            )
    extra = sorted(set(raw).difference(used))
    if extra:
        raise CheckpointError(
            f"{path} holds {quoted(extra[0])}, which does not belong to its params.json; take "
            "both from the same release."
        )
    return views


def _raw_name(name: str) -> str:
    for pattern, replacement in _PARTS:
        name = re.sub(pattern, replacement, name)
    return name


def _join(path: Path, name: str, pieces: Sequence[SourceTensor], shape: tuple[int, ...]) -> Joined:
    """One matrix from its shards: all of it in each, or rows, or columns of it."""
    shapes = [piece.shape for piece in pieces]
    if len({piece.dtype for piece in pieces}) > 1:
        raise CheckpointError(f"{path} holds {quoted(name)} in several dtypes; download it again.")
    if all(found == shape for found in shapes):
        _require_copies(path, name, pieces)
        return Joined((pieces[0],))
    if all(len(found) == 2 for found in shapes):
        rows, columns = (sum(found[axis] for found in shapes) for axis in (0, 1))
        if {found[1] for found in shapes} == {shape[-1]} and rows == shape[0]:
            return Joined(tuple(pieces))
        if {found[0] for found in shapes} == {shape[0]} and columns == shape[-1]:
            return Joined(tuple(pieces), axis=1)
    found = " + ".join("x".join(map(str, piece)) for piece in shapes)
    raise CheckpointError(
        f"{path} holds {quoted(name)} as {found}, but params.json asks for "
        f"{'x'.join(map(str, shape))}; a consolidated file is missing, or they are of different "
        "models."
    )


def _require_copies(path: Path, name: str, pieces: Sequence[SourceTensor]) -> None:
    first, *others = pieces
    if not others:
        return
    if first.n_bytes > _COPIES_COMPARED or any(_bytes(o) != _bytes(first) for o in others):
        raise CheckpointError(
            f"{path} holds {quoted(name)} in {len(pieces)} files, and they differ; remove those "
            "that do not belong to the release."
        )


def _bytes(tensor: SourceTensor) -> bytes:
    return read_stored(tensor, 0, tensor.n_bytes // tensor.row_bytes).tobytes()


def _small_files(path: Path) -> tuple[Path, dict[str, int]]:
    """A folder of the same name for what is no weight, as long as this process lasts."""
    temporary = Path(tempfile.mkdtemp(prefix="quantkit-raw-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    folder = temporary / folder_name(path)
    folder.mkdir()
    ids = run_apart(
        lambda: add_tokenizer_files(path, folder),
        f"The tokenizer in {path}",
        seconds=_TOKENIZER_SECONDS,
        error=TokenizerError,
        fix="download it again",
    )
    return folder, ids
