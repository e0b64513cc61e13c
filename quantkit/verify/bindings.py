"""One model loaded in llama.cpp, on a plain CPU path. Only ever imported in the worker.

Source: llama.cpp's ``include/llama.h`` and ``ggml/include/gguf.h``, through the ctypes
declarations of llama-cpp-python.
"""

import ctypes
import importlib
import importlib.util
import os
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from quantkit.core.errors import NativeError, SmokeError
from quantkit.verify.llama import REINSTALL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LOG_DEBUG, _LOG_INFO, _LOG_WARN, _LOG_ERROR = 1, 2, 3, 4  # ggml_log_level
_N_CTX = 256
_F32 = 0  # ggml_type
_ATTR_UNKNOWN = 1  # LLAMA_TOKEN_ATTR_UNKNOWN
_NO_POOLING, _MEAN, _RANK = 0, 1, 4  # llama_pooling_type
_POOLINGS = {1: "mean", 2: "first token", 3: "last token", 4: "rank"}


@cache
def library() -> Any:
    """llama-cpp-python's declarations, ``llama_cpp.llama_cpp``, and nothing else of it.

    An empty module stands in for the package, because its own ``__init__`` imports chat
    templates, a server's helpers and more, which takes longer than a small smoke test.

    Raises:
        NativeError: it is not installed, or its libraries do not load.

    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise NativeError("llama-cpp-python is not installed; pip install llama-cpp-python.")
    package = ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    try:
        module = importlib.import_module("llama_cpp.llama_cpp")
    except (OSError, RuntimeError, AttributeError, ImportError) as error:
        raise NativeError(f"llama-cpp-python does not load ({error}); {REINSTALL}") from None
    _listen(module)
    module.llama_backend_init()
    return module


_errors: list[str] = []
_remarks: list[str] = []  # lines about memory, which no function returns
# What lines about memory have, by level: sizes, a layer of a cache, a tensor that is not loaded.
_TELLS = {_LOG_INFO: b" MiB", _LOG_DEBUG: b": dev = ", _LOG_WARN: b"unused tensor"}
_callbacks: list[Any] = []  # what C holds a pointer to must outlive the call that passed it


def _listen(module: Any) -> None:
    def note(level: int, text: bytes, _user_data: object) -> None:
        if level == _LOG_ERROR:
            line = text.decode(errors="replace").strip()
            _errors.append(line)
            sys.stderr.write(line + "\n")
        elif _TELLS.get(level, b"\0") in text:
            _remarks.append(text.decode(errors="replace").strip())

    callback = module.llama_log_callback(note)
    _callbacks.append(callback)
    module.llama_log_set(callback, None)


def _complaint() -> str:
    """The first error that llama.cpp logged: the others only report that it gave up."""
    if not _errors:
        return "no reason given"
    bare = re.sub(r"^(\w+: )*(error loading model: )?(\w+: )*", "", _errors[0])
    return " ".join(bare.split()).rstrip(".")


def facts() -> dict[str, str]:
    """What llama.cpp says of itself: ``version`` and ``system_info`` (its instruction sets)."""
    llama = library()
    return {
        "version": llama.llama_version().decode(),
        "system_info": llama.llama_print_system_info().decode().strip(" |\n"),
    }


def data_end(file: Path) -> tuple[int, int]:
    """Where the header says that a GGUF file ends: without and with its last padding, in bytes.

    Raises:
        SmokeError: ggml's own reader refuses the header.

    """
    gguf = _gguf_functions()
    _errors.clear()
    context = gguf.gguf_init_from_file(os.fsencode(file), _GGUFParams(no_alloc=True, ctx=None))
    if not context:
        raise SmokeError(f"{file.name} has a broken header: {_complaint()}.")
    alignment = gguf.gguf_get_alignment(context)
    start = gguf.gguf_get_data_offset(context)
    last = gguf.gguf_get_n_tensors(context) - 1
    size = 0
    if last >= 0:
        size = gguf.gguf_get_tensor_offset(context, last) + gguf.gguf_get_tensor_size(context, last)
    gguf.gguf_free(context)
    end = start + size
    return end, -(-end // alignment) * alignment


def check_size(file: Path) -> None:
    """Compare the size of a GGUF file with what its header says.

    Raises:
        SmokeError: it is another, or ggml's own reader refuses the header.

    """
    end, padded_end = data_end(file)
    size = file.stat().st_size
    if not end <= size <= padded_end:
        cause = "it is truncated" if size < end else "something was appended to it"
        raise SmokeError(
            f"{file.name} has {size:,} bytes where its header accounts for {padded_end:,}: "
            f"{cause}, or its header is damaged."
        )


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
    model = _load(file, dry=dry, gpu=gpu)
    unused = [match[1] for line in _remarks if (match := _UNUSED.search(line))]
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
        _remarks.clear()
        llama.llama_free(_open_context(llama, model, setting, file, n_batch))
        found.append(_memory_told(_remarks))
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
    _errors.clear()
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise SmokeError(f"llama.cpp cannot make a context for {file.name}: {_complaint()}.")
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


class _GGUFParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def ggml_library(function: str) -> Any:
    """The library that has a function of ggml's, as ctypes opens it."""
    llama = library()._lib
    if hasattr(llama, function):
        return llama
    from quantkit.encodings.ggml import library_path

    return ctypes.CDLL(str(library_path()))  # Windows looks no further than libllama


def _gguf_functions() -> Any:
    gguf = ggml_library("gguf_init_from_file")
    handle, size, index = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    for name, result, arguments in (
        ("gguf_init_from_file", handle, (ctypes.c_char_p, _GGUFParams)),
        ("gguf_get_alignment", size, (handle,)),
        ("gguf_get_data_offset", size, (handle,)),
        ("gguf_get_n_tensors", index, (handle,)),
        ("gguf_get_tensor_offset", size, (handle, index)),
        ("gguf_get_tensor_size", size, (handle, index)),
        ("gguf_free", None, (handle,)),
    ):
        function = getattr(gguf, name)
        function.restype, function.argtypes = result, arguments
    return gguf


def projector_library() -> Any:
    """llama-cpp-python's declarations of what sees and hears, ``llama_cpp.mtmd_cpp``.

    Raises:
        NativeError: it is not installed, or its libraries do not load.

    """
    llama = library()
    try:
        mtmd = importlib.import_module("llama_cpp.mtmd_cpp")
    except (OSError, RuntimeError, AttributeError, ImportError) as error:
        raise NativeError(f"llama-cpp-python does not load ({error}); {REINSTALL}") from None

    def note(level: int, text: bytes, _user_data: object) -> None:
        line = text.decode(errors="replace").strip()
        if level == _LOG_ERROR and line:
            _errors.append(line)
            sys.stderr.write(line + "\n")

    callback = llama.llama_log_callback(note)
    _callbacks.append(callback)
    mtmd.mtmd_log_set(callback, None)
    return mtmd


def load_projector(file: Path, model: Path | None, threads: int) -> tuple[str, ...]:
    """Load a projector on the CPU, and let go of it again.

    Args:
        file: its GGUF.
        model: one that it is for, whose weights may be absent; None for whatever model.
        threads: how many compute.

    Returns:
        what it takes: ``vision``, ``audio`` or both.

    Raises:
        SmokeError: llama.cpp does not load it, or the model.

    """
    llama, mtmd = library(), projector_library()
    text = _load(model, dry=True, gpu=False) if model is not None else None
    params = mtmd.mtmd_context_params_default()
    params.use_gpu = False
    params.print_timings = False
    params.n_threads = threads
    _errors.clear()
    context = mtmd.mtmd_init_from_file(os.fsencode(file), text, params)
    if not context:
        raise SmokeError(f"llama.cpp does not load it: {_complaint()}.")
    sees, hears = mtmd.mtmd_support_vision(context), mtmd.mtmd_support_audio(context)
    mtmd.mtmd_free(context)
    if text:
        llama.llama_model_free(text)
    return tuple(part for part, has in (("vision", sees), ("audio", hears)) if has)


def _load(file: Path, *, dry: bool, gpu: bool) -> Any:
    """A model, allocated or not, on the CPU or on all GPUs that there are."""
    llama = library()
    no_devices = (ctypes.c_void_p * 1)(None)
    params = llama.llama_model_default_params()
    params.no_alloc = dry
    params.load_mode = llama.LLAMA_LOAD_MODE_NONE  # a dry run of a mapped file aborts
    params.use_extra_bufts = False
    if gpu:
        params.n_gpu_layers = -2  # all
    else:
        params.devices = ctypes.addressof(no_devices)
        params.n_gpu_layers = 0
    _errors.clear()
    _remarks.clear()
    model = llama.llama_model_load_from_file(os.fsencode(file), params)
    if not model:
        raise SmokeError(f"llama.cpp does not load {file.name}: {_complaint()}.")
    return model


class Model:
    """A model in memory with a context of ``n_ctx`` tokens, by default a few hundred.

    It is one of three kinds. One that ``embeds`` has no predictions, only embeddings of texts: it
    says how they are pooled, or keeps nothing of what it has read. One that ``translates`` has an
    encoder, whose text its decoder answers. All others go on with a text.

    No GPU is used and, unless ``extra_buffers`` is set, none of llama.cpp's special CPU weight
    layouts: the same plain path on every machine, and one that AMX cannot break.
    """

    def __init__(
        self,
        file: Path,
        *,
        extra_buffers: bool,
        threads: int,
        n_ctx: int = _N_CTX,
        n_batch: int = 64,
        full_precision: bool = False,
        scores: bool = True,
        gpu_layers: int = 0,
        watch: Any = None,
    ) -> None:
        """Load it.

        Args:
            file: the GGUF, or its first shard.
            extra_buffers: whether special weight layouts are allowed.
            threads: how many compute.
            n_ctx: tokens in a context.
            n_batch: the most tokens at a time.
            full_precision: round nothing to float16 on the way.
            scores: let a reranker give its scores, else the mean of its tokens' embeddings.
            gpu_layers: how many layers a GPU takes, where this build of llama.cpp has one.
            watch: llama.cpp's callback for every node that it computes (`watch.Watch`).

        """
        self._llama = llama = library()
        self._no_devices = (ctypes.c_void_p * 1)(None)
        self._gpu_layers, self._watch = gpu_layers, watch
        params = llama.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        if not gpu_layers:
            params.devices = ctypes.addressof(self._no_devices)
        elif not llama.llama_supports_gpu_offload():
            raise SmokeError(
                "This llama-cpp-python has no GPU backend; leave out --gpu-layers, or build it for "
                "your GPU (CMAKE_ARGS=-DGGML_CUDA=on pip install llama-cpp-python)."
            )
        params.check_tensors = True  # NaN and infinite weights and scales
        params.use_extra_bufts = extra_buffers
        _errors.clear()
        self._model = llama.llama_model_load_from_file(os.fsencode(file), params)
        if not self._model:
            reason = _complaint().replace("invalid data", "NaN or infinite weights or scales")
            raise SmokeError(f"llama.cpp does not load it: {reason}.")
        self._vocab = llama.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        encodes = bool(llama.llama_model_has_encoder(self._model))
        self.translates = encodes and bool(llama.llama_model_has_decoder(self._model))
        self.embeds = encodes and not self.translates
        self._pooling: int | None = None
        self._open_context(threads, n_ctx, n_batch, full_precision)
        pooling = llama.llama_pooling_type(self._context)
        forgets = not llama.llama_get_memory(self._context)
        diffuses = bool(llama.llama_model_is_diffusion(self._model))
        if self.embeds or pooling > _NO_POOLING or (forgets and not diffuses):
            self.embeds = True
            kept = pooling > _NO_POOLING and (scores or pooling != _RANK)
            self._pooling = pooling if kept else _MEAN
        if self.embeds or diffuses:  # these see a text as a whole or not at all
            llama.llama_free(self._context)
            self._open_context(threads, n_ctx, n_batch, full_precision, whole=True)

    def _open_context(
        self, threads: int, n_ctx: int, n_batch: int, full_precision: bool, *, whole: bool = False
    ) -> None:
        llama = self._llama
        params = llama.llama_context_default_params()
        params.n_ctx = n_ctx
        whole = whole or self.translates
        params.n_batch, params.n_ubatch = n_batch, n_batch if whole else min(n_batch, 512)
        params.n_threads = params.n_threads_batch = threads
        params.offload_kqv = params.op_offload = bool(self._gpu_layers)
        if self._watch is not None:
            params.cb_eval = self._watch
        if self._pooling is not None:
            params.embeddings = True
            params.pooling_type = self._pooling
        if full_precision:  # else llama.cpp rounds keys, values and some products to float16
            params.type_k = params.type_v = _F32
            params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        _errors.clear()
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise SmokeError(f"llama.cpp cannot make a context for it: {_complaint()}.")
        self.n_ctx: int = llama.llama_n_ctx(self._context)
        self.n_batch = n_batch
        self._n_past = 0

    @property
    def pooling(self) -> str:
        """How an embedding is made of those of a text's tokens: ``mean``, ``rank``, ..."""
        return _POOLINGS.get(self._pooling or 0, "none")

    @property
    def most_tokens(self) -> int:
        """The most tokens that one text may have where it is seen as a whole."""
        return min(self.n_batch, self.trained_context)

    @property
    def trained_context(self) -> int:
        """The longest context that the model was trained for, in tokens."""
        return int(self._llama.llama_model_n_ctx_train(self._model))

    @property
    def description(self) -> str:
        """llama.cpp's short name of the model, such as ``llama 8x7B Q4_K - Medium``."""
        buffer = ctypes.create_string_buffer(256)
        self._llama.llama_model_desc(self._model, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    def metadata(self, key: str) -> str | None:
        """A metadata value as text, or None if the file has no such key."""
        buffer = ctypes.create_string_buffer(256)
        length = self._llama.llama_model_meta_val_str(
            self._model, key.encode(), buffer, len(buffer)
        )
        return None if length < 0 else buffer.value.decode(errors="replace")

    @property
    def vocabulary_type(self) -> int:
        """``LLAMA_VOCAB_TYPE_*``: 0 none, 1 SentencePiece, 2 byte-level BPE, ..."""
        return int(self._llama.llama_vocab_type(self._vocab))

    def token(self, index: int) -> tuple[bytes, int, float]:
        """The text, ``LLAMA_TOKEN_ATTR_*`` bits and score of one token."""
        llama, vocab = self._llama, self._vocab
        return (
            llama.llama_vocab_get_text(vocab, index),
            llama.llama_vocab_get_attr(vocab, index),
            llama.llama_vocab_get_score(vocab, index),
        )

    def ends_generation(self, token: int) -> bool:
        """Whether the token says that the text is over."""
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))

    def is_unknown(self, token: int) -> bool:
        """Whether the token stands for what the vocabulary does not know."""
        text, attributes, _ = self.token(token)
        # Converters mark that of WordPiece as a control token.
        return bool(attributes & _ATTR_UNKNOWN) or text in (b"[UNK]", b"<unk>")

    @property
    def first_token(self) -> int | None:
        """The BOS that llama.cpp puts before every text, or None if this model gets none."""
        if not self._llama.llama_vocab_get_add_bos(self._vocab):
            return None
        return int(self._llama.llama_vocab_bos(self._vocab))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = False) -> list[int]:
        """Token ids of ``text``.

        With the model's BOS or EOS where ``add_special`` is set; where ``parse_special`` is, a
        control token's text becomes that token.
        """
        data = text.encode()
        size = len(data) + 8
        while True:
            tokens = (ctypes.c_int32 * size)()
            count: int = self._llama.llama_tokenize(
                self._vocab, data, len(data), tokens, size, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            if count == -(2**31):
                raise SmokeError(f"llama.cpp cannot tokenize {text!r}.")
            size = -count  # more tokens than bytes: a space has three bytes in SentencePiece

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            length: int = self._llama.llama_token_to_piece(
                self._vocab, token, buffer, size, 0, True
            )
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def forget(self) -> None:
        """Start a new text: what was evaluated before is no longer seen."""
        memory = self._llama.llama_get_memory(self._context)
        if memory:  # diffusion models have none
            self._llama.llama_memory_clear(memory, True)
        self._n_past = 0

    def embed(self, tokens: list[int]) -> "NDArray[np.float32]":
        """The embedding of a text of at most ``most_tokens`` tokens; of a reranker its scores."""
        import numpy as np

        llama = self._llama
        self.forget()
        self._send(tokens, 0, llama.llama_decode, "embed a text")
        found = llama.llama_get_embeddings_seq(self._context, 0)
        if not found:
            raise SmokeError("llama.cpp gives no embedding of a text with it.")
        ranks = self._pooling == _RANK
        count = (llama.llama_model_n_cls_out if ranks else llama.llama_model_n_embd_out)(
            self._model
        )
        return np.ctypeslib.as_array(found, (count,)).copy()

    def read(self, tokens: list[int]) -> int:
        """Give the encoder a text to answer, of at most ``n_batch`` tokens; the decoder's first."""
        llama = self._llama
        self.forget()
        self._send(tokens, 0, llama.llama_encode, "encode a text")
        self._n_past = 0
        start = int(llama.llama_model_decoder_start_token(self._model))
        return int(llama.llama_vocab_bos(self._vocab)) if start < 0 else start

    def evaluate(
        self, tokens: list[int], first: int = 0, *, compute_all: bool = False
    ) -> "NDArray[np.float32]":
        """The logits after each of ``tokens``, which continue what was evaluated before.

        Args:
            tokens: at most ``n_batch`` of them.
            first: the first token whose logits are wanted.
            compute_all: whether the last layer runs for the tokens before it, too.

        Returns:
            Shape (tokens from ``first`` on, vocabulary).

        """
        import numpy as np

        llama = self._llama
        wanted = 0 if compute_all else first
        self._send(tokens, wanted, llama.llama_decode, "evaluate tokens")
        rows = [
            np.ctypeslib.as_array(llama.llama_get_logits_ith(self._context, i), (self.n_vocab,))
            for i in range(first, len(tokens))
        ]
        return np.stack(rows)

    def _send(self, tokens: list[int], first: int, to: Any, doing: str) -> None:
        """Give tokens to ``llama_decode`` or ``llama_encode``; results from ``first`` on."""
        llama = self._llama
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i] = token
                batch.pos[i] = self._n_past + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = i >= first
            _errors.clear()
            code = to(self._context, batch)
        finally:
            llama.llama_batch_free(batch)
        if code:
            raise SmokeError(f"llama.cpp cannot {doing} with it: {_complaint()} (code {code}).")
        self._n_past += len(tokens)
