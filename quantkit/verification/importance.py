"""An importance matrix that llama.cpp gathers over a text. Only ever imported in the worker.

As llama.cpp's ``tools/imatrix/imatrix.cpp`` does it: the text is cut into chunks, each begins with
the model's BOS, and all positions are computed to the end. Keys, values and products of attention
stay in float32.
"""

import json
import time
from collections.abc import Callable, Sequence
from math import exp
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.calibration.sources import Piece
from quantkit.calibration.text import CHARACTERS, within
from quantkit.checkpoint.gathered import load_sums
from quantkit.checkpoint.imatrix_file import MADE_FROM, read_note, write_imatrix
from quantkit.core.documents import parse_json, parse_object
from quantkit.core.errors import SmokeError
from quantkit.core.files import MOST_TEXT, read_file
from quantkit.verification.bindings import LlamaModel
from quantkit.verification.evaluation import losses_of
from quantkit.verification.watch import Seen, Watch

_PROGRESS = "quantkit.progress"
_FEWEST_CHUNKS = 2  # as llama-imatrix has it


def answer(request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    """Do what an ``importance`` request asks: write ``out``, and now and then ``unfinished``.

    An ``unfinished`` file of the same ``identity`` is where it goes on.

    Returns:
        ``chunks``, ``resumed`` (of them, by an earlier run), ``perplexity`` over the second half of
        each, None for a model that predicts nothing, and ``trained``, the longest context that the
        model was trained for.

    Raises:
        SmokeError: llama.cpp does not run the model over this text.
        NativeError: this llama.cpp is not the one that is known.

    """
    unfinished, identity = Path(request["unfinished"]), request["identity"]
    context, names = request["context"], request["names"]
    done, loss, seen = _resume(unfinished, identity, context)
    watch = Watch(seen)
    send(stage="loading the model")
    model = LlamaModel(
        Path(request["file"]),
        extra_buffers=False,
        threads=request["threads"],
        n_ctx=context,
        n_batch=context,
        full_precision=True,
        gpu_layers=request["gpu_layers"],
        watch=watch.callback,
    )
    send(stage="tokenizing the text")
    chunks = _split(model, Path(request["text"]), context, request["chunks"])
    n_scored = context - 1 - context // 2
    start = saved = time.monotonic()

    def save(path: Path, notes: dict[str, str]) -> None:
        partial = path.with_suffix(".new")
        partial.unlink(missing_ok=True)
        entries = {name: one for name, one in watch.seen.items() if one.counts.any()}
        write_imatrix(partial, entries, names, len(chunks), context, notes)
        partial.replace(path)

    resumed = done
    for index in range(resumed, len(chunks)):
        send(
            stage=f"evaluating chunk {index + 1} of {len(chunks)}",
            done=index,
            of=len(chunks),
            seconds=time.monotonic() - start,
            resumed=resumed,
        )
        loss += _evaluate(model, chunks[index])
        watch.require_fine()
        done = index + 1
        if time.monotonic() - saved >= request["save_seconds"] and done < len(chunks):
            progress = {"identity": identity, "done": done, "loss": loss}
            save(unfinished, {_PROGRESS: json.dumps(progress)})
            saved = time.monotonic()
    send(stage="writing the matrix", done=done, of=len(chunks), seconds=0.0, resumed=resumed)
    save(Path(request["out"]), {MADE_FROM: identity})
    predicts = not model.embeds
    return {
        "chunks": len(chunks),
        "resumed": resumed,
        "perplexity": exp(loss / (n_scored * len(chunks))) if predicts else None,
        "trained": model.trained_context,
        "n_different": len({token for chunk in chunks for token in chunk}),
        "vocabulary": model.n_vocab,
        "routing": {
            name: one.counts.tolist() for name, one in watch.seen.items() if one.counts.size > 1
        },
    }


def _resume(unfinished: Path, identity: str, context: int) -> tuple[int, float, dict[str, Seen]]:
    """Chunks done, their losses, and what was seen, where an earlier run was the same."""
    note = read_note(unfinished, _PROGRESS) if unfinished.is_file() else None
    progress = parse_object(note.encode(), unfinished) if note is not None else {}
    if progress.get("identity") != identity:
        return 0, 0.0, {}
    entries = load_sums(unfinished, context).entries
    seen = {name: Seen(sums.squares, sums.counts) for name, sums in entries.items()}
    return progress["done"], progress["loss"], seen


def _split(model: LlamaModel, file: Path, context: int, most: int) -> list[list[int]]:
    if model.embeds and context > model.most_tokens:
        raise SmokeError(
            f"It reads at most {model.most_tokens} tokens at a time; give --context "
            f"{model.most_tokens}."
        )
    raw = read_file(file, most=2 * MOST_TEXT, error=SmokeError, fix="give a text file")
    pieces = [Piece(*piece) for piece in parse_json(raw, file, error=SmokeError)]
    tokens = _tokenize(model, within(pieces, most * context * CHARACTERS))
    if len(tokens) < most * context:
        tokens = _tokenize(model, pieces)
    count = min(most, len(tokens) // context)
    fewest = min(most, _FEWEST_CHUNKS)
    if count < fewest:
        raise SmokeError(
            f"The text's tokens are {len(tokens)}, but calibrating takes at least "
            f"{fewest * context} (chunks of {context}: {fewest}); give more text or a smaller "
            "--context."
        )
    chunks = [tokens[i * context : (i + 1) * context] for i in range(count)]
    if model.first_token is not None and not model.translates:
        chunks = [[model.first_token, *chunk[1:]] for chunk in chunks]
    return chunks


def _tokenize(model: LlamaModel, pieces: Sequence[Piece]) -> list[int]:
    """The tokens of all pieces, with those around a text about the first."""
    tokens: list[int] = []
    for text, special in pieces:
        found = model.tokenize(text, add_special=not tokens, parse_special=special)
        if special and found[:2] == [model.first_token] * 2:  # the template writes it as well
            found = found[1:]
        tokens += found
    return tokens


def _evaluate(model: LlamaModel, tokens: list[int]) -> float:
    """Run a chunk through the model; the sum of the losses of its second half."""
    first = len(tokens) // 2
    if model.embeds:
        model.embed(tokens)
        return 0.0
    if model.translates:
        start = model.read(tokens[: first + 1])
        logits = model.evaluate([start, *tokens[first + 1 :]])[:-1]
    else:
        model.forget()
        logits = model.evaluate(tokens, first, compute_all=True)[:-1]
    if not np.isfinite(logits).all():
        raise SmokeError("llama.cpp computes NaN or infinite logits with it.")
    return float(losses_of(logits, tokens[first + 1 :]).sum())
