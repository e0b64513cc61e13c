"""A model over a text, in llama.cpp: recorded as the reference, or measured against one.

Only ever imported in the worker. The text goes through in windows of ``context`` tokens, each on
its own and starting with the model's BOS; the second half of each is scored (llama.cpp's
``tools/perplexity/perplexity.cpp``). A model with an encoder and a decoder gets the first half in
its encoder and the second half in its decoder, whose predictions are scored. A model that embeds
gets pieces of the text, each as a whole, and its embeddings are compared.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from math import exp
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import SmokeError
from quantkit.core.files import MOST_TEXT, read_file, with_plain_line_ends
from quantkit.core.system import most_resident_bytes
from quantkit.core.writing import create
from quantkit.verification.bindings import LlamaModel
from quantkit.verification.divergence import Tally, mean_and_error, pack_log_probs
from quantkit.verification.embeddings import (
    compare_embeddings,
    read_embeddings,
    split_text,
    write_embeddings,
)
from quantkit.verification.reference import (
    RecordedText,
    read_text,
    read_window,
    write_header,
    write_window,
)

_N_PROMPT = 16
_N_GENERATED = 32


def answer(request: dict[str, Any], begin: Callable[[str], None]) -> dict[str, Any]:
    """Do what a ``record``, ``measure``, ``perplexity`` or ``logits`` request asks.

    Returns:
        ``measures`` (of a model that embeds, ``cosines``) and ``speed`` as JSON values; of
        ``perplexity`` that alone, of ``logits`` nothing but the shape.

    Raises:
        SmokeError: llama.cpp refuses the file, or its results are of no use.

    """
    begin("loading the model")
    context = request["context"]
    start = time.perf_counter()
    model = LlamaModel(
        Path(request["file"]),
        extra_buffers=False,
        threads=request["threads"],
        gpu_layers=request.get("gpu_layers", 0),
        n_ctx=context,
        n_batch=context,
        full_precision=request["task"] == "logits",
        scores=False,  # of a single number there is no angle
    )
    load_seconds = time.perf_counter() - start
    if model.embeds:
        return _measure_embeddings(model, request, load_seconds, begin)
    if request["task"] == "logits":
        begin("evaluating the tokens")
        return _dump(model, request["tokens"], request["last"], Path(request["out"]))
    begin("tokenizing the text")
    text = _split(model, Path(request["text"]), context, request["windows"])
    if request["task"] == "perplexity":
        return _perplexity(model, text, begin)
    reference = Path(request["reference"])
    if request["task"] == "record":
        with create(reference) as file:
            write_header(file, text)
            tally, seconds = _run(model, text, begin, write_to=file)
    else:
        recorded = read_text(reference)
        if recorded.n_vocab != model.n_vocab or not np.array_equal(recorded.tokens, text.tokens):
            raise SmokeError(
                "It splits the text into other tokens than the reference: its vocabulary or "
                "tokenizer settings are not the reference's."
            )
        tally, seconds = _run(model, text, begin, read_from=reference)
    begin("generating")
    return {
        "description": model.description,
        "measures": asdict(tally.measures()),
        "translates": model.translates,
        "windows": text.n_windows,
        "speed": {
            "load_seconds": load_seconds,
            "prompt_tokens_per_second": text.tokens.size / seconds,
            "generation_tokens_per_second": _generation_speed(model, text),
            "resident_bytes": _resident(),
        },
    }


def _measure_embeddings(
    model: LlamaModel, request: dict[str, Any], load_seconds: float, begin: Callable[[str], None]
) -> dict[str, Any]:
    """What a request asks of a model that predicts nothing."""
    if request["task"] not in ("record", "measure"):
        raise SmokeError(
            "It embeds texts and predicts no tokens, so it has no perplexity; compare it with its "
            "source: quantkit compare."
        )
    pieces = split_text(_read(Path(request["text"])))[: request["windows"]]
    rows, seconds, n_tokens = [], 0.0, 0
    for index, piece in enumerate(pieces):
        begin(f"embedding text {index + 1} of {len(pieces)}")
        tokens = model.tokenize(piece, add_special=True)
        if len(tokens) > model.most_tokens:  # the last one may be the one that ends a text
            tokens = [*tokens[: model.most_tokens - 1], tokens[-1]]
        start = time.perf_counter()
        row = model.embed(tokens)
        seconds += time.perf_counter() - start
        n_tokens += len(tokens)
        if not np.isfinite(row).all():
            raise SmokeError(f"llama.cpp computes NaN or infinite numbers with it: text {index}.")
        rows.append(row)
    embeddings = np.stack(rows)
    reference = Path(request["reference"])
    if request["task"] == "record":
        write_embeddings(reference, embeddings)
    theirs = read_embeddings(reference)
    if theirs.shape != embeddings.shape:
        raise SmokeError(
            f"It has {embeddings.shape[1]} numbers for each of {len(embeddings)} texts, the "
            f"reference {theirs.shape[1]} for each of {len(theirs)}: they are of different models."
        )
    return {
        "description": model.description,
        "cosines": asdict(compare_embeddings(embeddings, theirs)),
        "windows": len(embeddings),
        "speed": {
            "load_seconds": load_seconds,
            "prompt_tokens_per_second": n_tokens / seconds,
            "generation_tokens_per_second": None,
            "resident_bytes": _resident(),
        },
    }


def _read(file: Path) -> str:
    # llama.cpp's tools drop one newline at the end of a file that they read as a prompt.
    raw = read_file(file, most=MOST_TEXT, error=SmokeError, fix="give a text file")
    return with_plain_line_ends(raw.decode(errors="replace")).removesuffix("\n")


def _split(model: LlamaModel, file: Path, context: int, windows: int | None) -> RecordedText:
    tokens = np.array(model.tokenize(_read(file), add_special=True), np.int32)
    n = len(tokens) // context
    if n < 1:
        raise SmokeError(
            f"The text has {len(tokens)} tokens, fewer than one window of {context}: "
            "give a longer one or a smaller --context."
        )
    n = min(n, windows or n)
    return RecordedText(tokens[: n * context].reshape(n, context), model.n_vocab)


def _logits(model: LlamaModel, text: RecordedText, index: int) -> NDArray[np.float32]:
    """The logits of a window's scored positions, and of the last one, which nothing follows."""
    tokens = text.tokens[index].tolist()
    if model.translates:
        start = model.read(tokens[: text.first + 1])
        return model.evaluate([start, *tokens[text.first + 1 :]])
    if model.first_token is not None:
        tokens[0] = model.first_token
    model.forget()
    return model.evaluate(tokens, text.first)


def _run(
    model: LlamaModel,
    text: RecordedText,
    begin: Callable[[str], None],
    *,
    write_to: BinaryIO | None = None,
    read_from: Path | None = None,
) -> tuple[Tally, float]:
    """The tally of all windows and the seconds that llama.cpp computed."""
    tally, seconds = Tally(), 0.0
    for index in range(text.n_windows):
        begin(f"evaluating window {index + 1} of {text.n_windows}")
        start = time.perf_counter()
        logits = _logits(model, text, index)[:-1]
        seconds += time.perf_counter() - start
        _require_finite(logits, index)
        targets = text.tokens[index, text.first + 1 :]
        if read_from is not None:
            tally.add(logits, read_window(read_from, text, index), targets)
        else:
            assert write_to is not None  # noqa: S101 - one of the two is given
            write_window(write_to, logits)
            # Against its own rounded self: the floor below which no divergence means anything.
            _add_self(tally, logits, targets)
    return tally, seconds


def _perplexity(
    model: LlamaModel, text: RecordedText, begin: Callable[[str], None]
) -> dict[str, Any]:
    """The perplexity of all windows and its standard error."""
    losses = []
    for index in range(text.n_windows):
        begin(f"evaluating window {index + 1} of {text.n_windows}")
        logits = _logits(model, text, index)[:-1]
        _require_finite(logits, index)
        targets = text.tokens[index, text.first + 1 :]
        losses.append(losses_of(logits, targets))
    mean, error = mean_and_error(np.concatenate(losses))
    return {"ppl": exp(mean), "ppl_pm": exp(mean) * error, "windows": text.n_windows}


def losses_of(logits: NDArray[np.float32], targets: Iterable[int]) -> NDArray[np.float64]:
    """Minus the log-probability of each target; ``logits`` have shape (targets, vocabulary)."""
    losses = []
    for row, target in zip(logits, targets, strict=True):
        wide = row.astype(np.float64)
        peak = wide.max()
        losses.append(peak + np.log(np.exp(wide - peak).sum()) - wide[target])
    return np.array(losses)


def _require_finite(logits: NDArray[np.float32], index: int) -> None:
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).sum())
        raise SmokeError(
            f"llama.cpp computes NaN or infinite logits with it: {bad} of {logits.size} in "
            f"window {index + 1}."
        )


def _add_self(tally: Tally, logits: NDArray[np.float32], targets: NDArray[np.int32]) -> None:
    for start in range(0, len(targets), 32):
        block = slice(start, start + 32)
        tally.add(logits[block], pack_log_probs(logits[block]), targets[block])


def _generation_speed(model: LlamaModel, text: RecordedText) -> float:
    """Tokens per second, one at a time, after a prompt of a few tokens."""
    model.forget()
    prompt = text.tokens[0, :_N_PROMPT].tolist()
    if model.translates:
        prompt = [model.read(prompt)]
    logits = model.evaluate(prompt, len(prompt) - 1)
    seconds = 0.0
    for _ in range(_N_GENERATED):
        start = time.perf_counter()
        logits = model.evaluate([int(logits[-1].argmax())])
        seconds += time.perf_counter() - start
    return _N_GENERATED / seconds


def _dump(model: LlamaModel, tokens: list[int], last: int, out: Path) -> dict[str, Any]:
    """The logits of the last tokens into a file of raw float32."""
    if model.translates:
        raise SmokeError(
            "It has an encoder and a decoder, whose logits cannot be compared position by position."
        )
    with create(out) as file:
        file.write(model.evaluate(tokens, len(tokens) - last).tobytes())
    return {"n_vocab": model.n_vocab}


def _resident() -> int | None:
    """The most memory that this process has held, in bytes, mapped weights included."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would start from what the process that started this one held.
        return int(read_file(status).partition(b"VmHWM:")[2].split()[0]) * 1024
    return most_resident_bytes()
