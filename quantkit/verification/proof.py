"""Whether a GGUF computes what its checkpoint does: the original layer by layer, and llama.cpp.

The same tokens go through both, and the scores of the last ones are compared. How far the two may
be apart is not a fixed number: the original is run a second time with everything that goes into a
matrix rounded as ggml rounds it, because some models damp such noise and others blow it up. An
error in the conversion (a name, a permutation, a norm, the rotation, a window) lies far above.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.checkpoint import Checkpoint, stored_view
from quantkit.checkpoint.gguf import read_header
from quantkit.checkpoint.shortened import count_layers
from quantkit.checkpoint.text_config import text_config
from quantkit.core.errors import QuantkitError, TokenizerError
from quantkit.core.packages import why_missing
from quantkit.core.tensors import FLOAT_BYTES
from quantkit.verification.llama import run_worker
from quantkit.verification.machine import usable_cores
from quantkit.verification.smoke import artifact_files, time_limit

if TYPE_CHECKING:
    from quantkit.calibration.lockstep.logits import Predictions

SCORED = 256
_BEYOND = 128  # tokens that are to lie beyond a window of attention
_FEWEST = 32
_MOST = 8192 + _BEYOND
_SECONDS = 3600  # of llama.cpp, with a model of any size and the longest text
# How many times what rounding alone does to the scores llama.cpp may be away from them.
_ROOM = 3.0
_LEAST = 1e-5  # relative: float32 itself, where a model damps all else
# Standard deviations: what differs less rejects nothing, and is not proven; bfloat16 does as much
# by its rounding. llama.cpp cuts off YaRN's ramp at whole numbers, for one, and gpt-oss does not.
_SMALL = 0.01
_QUANTILES = (50, 90)
PLAIN = frozenset(FLOAT_BYTES)

Outcome = Literal["proven", "wrong", "not proven"]


@dataclass(frozen=True, slots=True)
class Proof:
    """How a comparison ended.

    ``reason`` is a sentence where it is not ``proven``. ``error`` is the root mean square of the
    differences between scores, in standard deviations of the original's, and ``noise`` that of
    rounding alone; ``kld`` the mean KL divergence. ``open`` are sentences on what was not reached.
    """

    outcome: Outcome
    reason: str = ""
    error: float | None = None
    noise: float | None = None
    kld: float | None = None
    tokens: int = 0
    layers: int = 0
    of_layers: int = 0
    transformers: str = ""
    open: tuple[str, ...] = ()

    def as_numbers(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Distance:
    """How far scores are from others, in standard deviations: overall, and at quantiles."""

    overall: float
    at: tuple[float, ...]

    def within(self, other: "_Distance", times: float) -> bool:
        pairs = zip((self.overall, *self.at), (other.overall, *other.at), strict=True)
        return all(mine <= times * max(theirs, _LEAST) for mine, theirs in pairs)


def prove(
    checkpoint: Checkpoint,
    gguf: Path,
    *,
    threads: int | None = None,
    report: Callable[[float, int], None] = lambda _done, _layers: None,
) -> Proof:
    """Compare a GGUF whose weights are floats with the checkpoint that it was made from.

    Args:
        checkpoint: any that transformers has a class for.
        gguf: its file, or the first shard.
        threads: for llama.cpp; by default the cores this process may use.
        report: told the layers of the original that are done, of how many.

    Returns:
        the outcome; what cannot be compared is not proven.

    Raises:
        GGUFError: the file is not there, or unsound.

    """
    if missing := lacking():
        return not_proven(missing)
    import transformers

    from quantkit.calibration.lockstep.logits import predict
    from quantkit.calibration.settings import Settings

    headers = [read_header(file) for file in artifact_files(gguf)]
    architecture = headers[0].metadata.get("general.architecture")
    if headers[0].metadata.get(f"{architecture}.attention.causal") is False:
        return not_proven(
            "Its tokens attend to later ones, and only models that predict text token by token are "
            "compared."
        )
    kinds = {tensor.encoding.name for header in headers for tensor in header.tensors}
    if odd := kinds - PLAIN:
        return not_proven(f"Its weights are rounded to {', '.join(sorted(odd))}.")
    roundings = [kind for kind in ("F16", "BF16") if kind in kinds] or ["F16"]
    config = text_config(checkpoint.config)
    n_tokens, unreached = length(config)
    try:
        tokens = _tokens(checkpoint, n_tokens)
        last = min(SCORED, n_tokens // 2)
        theirs = predict(stored_view(checkpoint), tokens, last, roundings, Settings(), report)
    except QuantkitError as error:  # stored as only others read it, or of no class
        return not_proven(str(error))
    with TemporaryDirectory(prefix="quantkit-") as folder:
        ours = _in_llama(gguf, tokens, last, Path(folder), threads)
        if isinstance(ours, str):
            return not_proven(ours)
        found = _judge(ours, theirs)
    layers = count_layers(checkpoint)
    return Proof(
        *found,
        tokens=n_tokens,
        layers=layers,
        of_layers=layers,
        transformers=transformers.__version__,
        open=tuple(unreached),
    )


def lacking() -> str:
    """What is to be installed to prove anything, as a sentence; empty if nothing is."""
    try:
        import torch  # noqa: F401 - transformers is imported without it, and runs nothing then
        import transformers  # noqa: F401
    except ImportError as error:
        return why_missing(str(error.name), "transformers", "Proving a conversion")
    return ""


def describe_proof(record: Mapping[str, Any]) -> str:
    """What a proof found, as a sentence, from its JSON values."""
    if record["outcome"] != "proven":
        words = {"wrong": "It is not the model", "not proven": "Not proven to be the model"}
        return f"{words[record['outcome']]}: {record['reason']}"
    layers = f"all {record['of_layers']} layers"
    if record["layers"] < record["of_layers"]:
        layers = f"the first {record['layers']} of {record['of_layers']} layers"
    text = (
        f"Proven against transformers {record['transformers']} over {record['tokens']:,} tokens, "
        f"{layers}: mean KLD {record['kld']:.1e}, scores {record['error']:.1e} standard deviations "
        f"apart where rounding explains {record['noise']:.1e}."
    )
    if record["open"]:
        text += f" Not proven: {'; '.join(record['open'])}."
    return text


def not_proven(reason: str) -> Proof:
    """Of what could not be compared."""
    return Proof("not proven", reason)


def length(config: Mapping[str, Any]) -> tuple[int, list[str]]:
    """How many tokens show all that a model does, and sentences on what so many do not show.

    A window of attention shows beyond its end only.

    Args:
        config: of the text part.

    """
    most = config.get("max_position_embeddings")
    most = min(_MOST, most) if isinstance(most, int) and most >= _FEWEST else _MOST
    wanted, unreached = 2 * SCORED, []
    for key in ("sliding_window", "attention_window_size", "attention_chunk_size"):
        window = config.get(key)
        if not isinstance(window, int) or config.get("use_sliding_window") is False:
            continue
        if window + _BEYOND <= most:
            wanted = max(wanted, window + _BEYOND)
        elif window < (config.get("max_position_embeddings") or _MOST):
            unreached.append(f"its window of {window:,} tokens was not reached")
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    kind = (scaling.get("rope_type") or scaling.get("type")) if isinstance(scaling, dict) else None
    if kind in ("longrope", "dynamic"):
        unreached.append(
            f"what its rotation ({kind}) does beyond its first context was not reached"
        )
    return min(wanted, most), unreached


def _tokens(checkpoint: Checkpoint, count: int) -> NDArray[np.int64]:
    """Text of a language, as the model's tokenizer has it; noise where that cannot be asked."""
    from quantkit.calibration.text import make_corpus, random_corpus

    try:
        corpus = make_corpus(checkpoint, (), 2, count)
    except TokenizerError:
        vocabulary = int(text_config(checkpoint.config).get("vocab_size") or 256)
        corpus = random_corpus(vocabulary, 1, count)
    tokens: NDArray[np.int64] = corpus.tokens[0]
    return tokens


def _in_llama(
    gguf: Path, tokens: NDArray[np.int64], last: int, folder: Path, threads: int | None
) -> NDArray[np.float32] | str:
    """The scores that llama.cpp gives, mapped; or why there are none."""
    out = folder / "logits"
    request = {
        "task": "logits",
        "file": str(gguf.absolute()),
        "out": str(out),
        "context": len(tokens),
        "tokens": tokens.tolist(),
        "last": last,
        "threads": threads or usable_cores(),
    }
    n_bytes = sum(file.stat().st_size for file in artifact_files(gguf))
    run = run_worker(request, timeout=_SECONDS + time_limit(n_bytes))
    answer = run.result or {"refused": run.failure}
    if "refused" in answer:
        return f"llama.cpp does not run {gguf.name}: {answer['refused']}"
    return np.memmap(out, np.float32, "r", shape=(last, answer["n_vocab"]))


def _judge(
    ours: NDArray[np.float32], theirs: "Predictions"
) -> tuple[Outcome, str, float, float, float]:
    """The outcome, its reason, and the figures of a proof."""
    n_vocab = min(ours.shape[1], theirs.exact.shape[1])  # one of them may have rows for padding
    exact, ours = theirs.exact[:, :n_vocab], ours[:, :n_vocab]
    mine = _distance(ours, exact)
    noises = [_distance(rounded[:, :n_vocab], exact) for rounded in theirs.rounded.values()]
    noise = max(noises, key=lambda distance: distance.overall)
    kld = _mean_kld(exact, ours)
    outcome: Outcome = "proven"
    reason = ""
    if not mine.within(noise, _ROOM):
        outcome = "wrong" if mine.overall > _SMALL else "not proven"
        reason = (
            f"llama.cpp's scores are {mine.overall:.2g} standard deviations from the original's, "
            f"where rounding explains {noise.overall:.2g} (mean KLD {kld:.1e})."
        )
    return outcome, reason, mine.overall, noise.overall, kld


def _distance(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> _Distance:
    squares = []
    for mine, exact in zip(ours, theirs, strict=True):
        gap = mine.astype(np.float64) - exact
        squares.append(float(np.square(gap).mean() / max(exact.astype(np.float64).var(), 1e-30)))
    rows = np.sqrt(squares)
    return _Distance(
        float(np.sqrt(np.mean(squares))), tuple(float(q) for q in np.percentile(rows, _QUANTILES))
    )


def _mean_kld(theirs: NDArray[np.float32], ours: NDArray[np.float32]) -> float:
    """The mean over positions of the divergence of our predictions from theirs, in nats."""
    total = 0.0
    for exact, mine in zip(theirs, ours, strict=True):
        p, q = _log_probs(exact), _log_probs(mine)
        total += float((np.exp(p) * (p - q)).sum())
    return total / len(theirs)


def _log_probs(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64) - logits.max()
    log_probs: NDArray[np.float64] = wide - np.log(np.exp(wide).sum())
    return log_probs
