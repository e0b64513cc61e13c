"""One model loaded in llama.cpp, on a plain CPU path. Only ever imported in the worker.

Source: llama.cpp's ``include/llama.h`` and ``ggml/include/gguf.h``, through the ctypes
declarations of llama-cpp-python.
"""

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.core.errors import SmokeError
from quantkit.verification.library import complaint, errors, library

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_N_CTX = 256
_F32 = 0  # ggml_type
_ATTR_UNKNOWN = 1  # LLAMA_TOKEN_ATTR_UNKNOWN
_NO_POOLING, _MEAN, _RANK = 0, 1, 4  # llama_pooling_type
_POOLINGS = {1: "mean", 2: "first token", 3: "last token", 4: "rank"}


class LlamaModel:
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
        errors.clear()
        self._model = llama.llama_model_load_from_file(os.fsencode(file), params)
        if not self._model:
            reason = complaint().replace("invalid data", "NaN or infinite weights or scales")
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
        errors.clear()
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise SmokeError(f"llama.cpp cannot create a context for it: {complaint()}.")
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
            raise SmokeError("llama.cpp computes no embedding with it.")
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
            errors.clear()
            code = to(self._context, batch)
        finally:
            llama.llama_batch_free(batch)
        if code:
            raise SmokeError(f"llama.cpp cannot {doing} with it: {complaint()} (code {code}).")
        self._n_past += len(tokens)
