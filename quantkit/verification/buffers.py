"""What llama.cpp allocates for a model, as it logs it. Only ever imported in the worker."""

import re
from pathlib import Path
from typing import Any

from quantkit.core.errors import SmokeError
from quantkit.verification.library import complaint, errors, library, load_model, remarks

# "load_tensors:   CPU model buffer size =  12.00 MiB"; "llama_kv_cache: layer   0: dev = CPU"; and,
# from a dry run too, "llama_kv_cache: size =  64.00 MiB (  1024 cells, ...".
_BUFFER = re.compile(r"^\w+:\s+(\S+)\s+(.+?) buffer size\s*=\s*([\d.]+) MiB")


_LAYER = re.compile(r"^(\w+)[:,] layer\s+(\d+): dev = ")


_HELD = re.compile(r"^(\w+): (?:.*, )?size\s*=\s*([\d.]+) MiB(?: \(\s*(\d+) cells)?")


_UNUSED = re.compile(r"unused tensor (\S+)")


# Buffers of which a line of ``_HELD`` tells the size, too, and what else is no memory of a context.
_TOLD_TWICE = re.compile(r"model|KV|RS|DSV4 \w+ state")


# Pooling that llama-server can do over several batches of one text: none, and the last token's.
_SPLITS = (0, 3)


def buffers(file: Path, settings: list[dict[str, Any]], *, dry: bool, gpu: bool) -> dict[str, Any]:
    """What llama.cpp allocates for a model, as it logs it: MiB with two decimals.

    A model that sees a text at once, because it has no memory or an encoder, gets batches as long
    as the context of one sequence, else 512 tokens.

    Args:
        file: a GGUF; of a dry run, one whose weights may be absent (a sparse file).
        settings: one entry per context to open: ``n_ctx`` tokens in all, ``n_seq`` sequences,
            ``kv_type`` (ggml's type number) and ``flash_attn``.
        dry: allocate nothing and only tell the sizes.
        gpu: offload all layers to the GPUs that this build of llama.cpp sees.

    Returns:
        ``gpu``: whether this build can offload at all; ``use``: what the model does, ``text``,
        ``embedding``, ``encoder-decoder`` or ``diffusion``; ``whole_texts``: whether a batch is as
        long as the context; ``unused``: tensors that stay in the file; ``contexts``: per setting
        ``buffers``, a list of ``[device, part, mebibytes]``, and ``memory``, a list of
        ``[function, mebibytes, cells, layers]`` with an entry per cache or state.

    Raises:
        SmokeError: llama.cpp refuses the file or a setting.

    """
    llama = library()
    model = load_model(file, dry=dry, gpu=gpu)
    unused = [match[1] for line in remarks if (match := _UNUSED.search(line))]
    shortest = min(settings, key=lambda setting: int(setting["n_ctx"]))
    context = _open_context(llama, model, {**shortest, "n_seq": 1}, file)
    remembers = bool(llama.llama_get_memory(context))
    pooling = llama.llama_pooling_type(context)
    llama.llama_free(context)
    encodes, decodes = llama.llama_model_has_encoder(model), llama.llama_model_has_decoder(model)
    whole_texts = bool(not remembers or encodes or pooling not in _SPLITS)
    use = "text"
    if llama.llama_model_is_diffusion(model):
        use = "diffusion"
    elif encodes and decodes:
        use = "encoder-decoder"
    elif encodes or pooling or not remembers:
        use = "embedding"
    found = []
    for setting in settings:
        n_batch = setting["n_ctx"] // setting["n_seq"] if whole_texts else 0
        remarks.clear()
        llama.llama_free(_open_context(llama, model, setting, file, n_batch))
        found.append(_memory_told(remarks))
    return {
        "gpu": bool(llama.llama_supports_gpu_offload()),
        "use": use,
        "whole_texts": whole_texts,
        "unused": unused,
        "contexts": found,
    }


def _open_context(
    llama: Any, model: Any, setting: dict[str, Any], file: Path, n_batch: int = 0
) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_seq_max = setting["n_ctx"], setting["n_seq"]
    # What llama-server and llama-cli start with, unless a text has to fit into a batch.
    params.n_batch, params.n_ubatch = max(2048, n_batch), n_batch or 512
    params.type_k = params.type_v = setting["kv_type"]
    params.flash_attn_type = int(setting["flash_attn"])
    params.kv_unified = False
    params.swa_full = False  # as the tools have it: caches no longer than their window
    errors.clear()
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise SmokeError(f"llama.cpp cannot create a context for {file.name}: {complaint()}.")
    return context


def _memory_told(lines: list[str]) -> dict[str, list[Any]]:
    """What lines of a log say of a context's memory; nothing that has a size is left out."""
    found: dict[str, list[Any]] = {"buffers": [], "memory": []}
    layers: dict[str, list[int]] = {}
    for line in lines:
        if match := _BUFFER.search(line):
            device, part, mebibytes = match[1], match[2], float(match[3])
            found["buffers"].append((device, part, mebibytes))
            if part not in ("compute", "output") and not _TOLD_TWICE.fullmatch(part):
                found["memory"].append((part, mebibytes, 0, []))
        elif match := _LAYER.search(line):
            layers.setdefault(match[1], []).append(int(match[2]))
        elif match := _HELD.search(line):
            held = (match[1], float(match[2]), int(match[3] or 0), layers.pop(match[1], []))
            found["memory"].append(held)
    return found
