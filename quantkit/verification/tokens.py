"""What a checkpoint's own tokenizer makes of many texts, for llama.cpp to make the same of them.

The tokenizer runs in a process of its own: the tokenizers package panics on some files, a regular
expression in one may run for hours, and what they print should not reach a user.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from quantkit.core.errors import TokenizerError
from quantkit.verification.llama import run_worker

_COMMAND = (sys.executable, "-P", "-m", "quantkit.verification.tokens")
_SECONDS = 120
# Texts of which no tokenizer has another reading than its GGUF; the frame is the same for all.
_FRAMED = ("Hello, world!", "", "x", "It is 12 o'clock.\nIs it?", "<<x>>")
_MOST_IDS = 12
_SAMPLED, _TOGETHER = 1024, 4

if TYPE_CHECKING:
    from quantkit.checkpoint.tokenizer.reference import Reference
    from quantkit.checkpoint.tokenizer.source import TokenizerSource

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ExpectedTokens:
    """The ids that a checkpoint's own tokenizer gives to texts.

    ``file`` is the tokenizer that a GGUF's vocabulary is made of. Each of ``texts`` is
    ``(text, ids, simpler, names)``: where entries of `deviations` affect the text, they are named
    and ``simpler`` are the ids without these traits, else None and empty. ``framed`` are
    texts with their ids and those that surround every text. ``remarks`` are sentences on
    tokenizers that contradict it. ``lacking`` says why there is nothing to compare with, and then
    there are no texts.
    """

    file: str
    texts: Sequence[tuple[str, list[int], list[int] | None, list[str]]]
    framed: Sequence[tuple[str, list[int]]]
    remarks: tuple[str, ...] = ()
    lacking: str | None = None


Frame = tuple[Sequence[int], Sequence[int]]


def expect_tokens(
    folder: Path,
    config: Mapping[str, Any],
    more: Sequence[str] = (),
    frame: Frame | None = None,
    first: str | None = None,
) -> ExpectedTokens:
    """Ask a checkpoint's own tokenizer.

    Args:
        folder: the checkpoint.
        config: its config.json.
        more: texts beside those of `hurting_texts`, such as what the chat template makes.
        frame: the ids before and after every text, where they are known from elsewhere.
        first: the file that the GGUF's vocabulary is made of, where it is another than usual; it
            is not compared with the others.

    Raises:
        TokenizerError: its library cannot open it, or not within two minutes.

    """
    request = {
        "folder": str(folder.absolute()),
        "config": dict(config),
        "more": list(more),
        "frame": frame,
        "first": first,
    }
    run = run_worker(request, timeout=_SECONDS, command=_COMMAND)
    result = run.result
    if result is None:
        cause = f"did not end within {_SECONDS} s" if run.timed_out else "ended without an answer"
        raise TokenizerError(f"The tokenizer in {folder} {cause}; download it again.")
    if "error" in result:
        raise TokenizerError(result["error"])
    return ExpectedTokens(
        result["file"],
        [(text, ids, simpler, names) for text, ids, simpler, names in result["texts"]],
        [(text, ids) for text, ids in result["framed"]],
        tuple(result["remarks"]),
    )


def show_ids(ids: Sequence[int], other: Sequence[int]) -> str:
    """Ids around the first that two lists do not share, cut to a dozen."""
    differ = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), None)
    start = max(0, (min(len(ids), len(other)) if differ is None else differ) - 3)
    shown = [str(token) for token in ids[start : start + _MOST_IDS]]
    before, after = ["..."] * (start > 0), ["..."] * (start + _MOST_IDS < len(ids))
    return f"[{' '.join([*before, *shown, *after])}]"


def show_text(text: str) -> str:
    """A text as a Python literal in ASCII, cut to a line."""
    shown = ascii(text)
    return shown if len(shown) <= 80 else f"{shown[:76]}...'"


def main() -> None:
    """Answer the request on stdin: the child's side."""
    request = json.load(sys.stdin)
    channel = sys.stdout
    sys.stdout = sys.stderr
    try:
        result = _answer(
            Path(request["folder"]),
            request["config"],
            request["more"],
            request["frame"],
            request["first"],
        )
    except TokenizerError as error:
        result = {"error": str(error)}
    json.dump({"result": result}, channel)


def _answer(
    folder: Path,
    config: Mapping[str, Any],
    more: Sequence[str],
    known: Frame | None,
    chosen: str | None,
) -> dict[str, Any]:
    from quantkit.checkpoint.tokenizer.deviations import finder
    from quantkit.checkpoint.tokenizer.frame import Frame as OwnFrame
    from quantkit.checkpoint.tokenizer.frame import frame_remarks
    from quantkit.checkpoint.tokenizer.reference import open_reference
    from quantkit.checkpoint.tokenizer.source import TEKKEN, read_source, vocabulary_files
    from quantkit.verification.texts import hurting_texts

    source = read_source(folder, config)
    first, *others = (chosen,) if chosen else vocabulary_files(folder)
    reference = _guard(folder / first, lambda: open_reference(source, first))
    words = _guard(folder / first, lambda: _sample(reference))
    added = [token.text for token in reference.traits.added]
    texts = hurting_texts(added, [*words, *more])
    ids = _guard(folder / first, lambda: [reference.encode(text) for text in texts])
    frame = OwnFrame(*map(tuple, known)) if known else reference.frame
    bare = _guard(folder / first, lambda: [reference.encode(text) for text in _FRAMED])
    framed = [(text, frame.around(found)) for text, found in zip(_FRAMED, bare, strict=True)]
    affected_by = finder(reference.traits)
    simpler = ids
    if affected_by:
        encode = _guard(folder / first, reference.simplify)
        simpler = _guard(folder / first, lambda: [encode(text) for text in texts])
    rows: list[tuple[str, list[int], list[int] | None, list[str]]] = []
    for text, right, other in zip(texts, ids, simpler, strict=True):
        names = affected_by(text) if affected_by and other != right else []
        rows.append((text, right, other if names else None, names))
    remarks = frame_remarks(frame, source) if first != TEKKEN and not known else []
    for name in others:
        try:
            remarks += _contradiction(source, first, name, rows)
        except TokenizerError as error:
            remarks.append(f"{first} was converted. Beside it: {error}")
    return {"file": first, "texts": rows, "framed": framed, "remarks": remarks}


def _contradiction(
    source: "TokenizerSource",
    first: str,
    name: str,
    rows: Sequence[tuple[str, list[int], list[int] | None, list[str]]],
) -> Iterator[str]:
    """Where another tokenizer of the folder gives other ids, for no reason that is listed."""
    from quantkit.checkpoint.tokenizer.deviations import finder
    from quantkit.checkpoint.tokenizer.reference import open_reference

    file = source.folder / name
    other = _guard(file, lambda: open_reference(source, name))
    affected_by = finder(other.traits) or (lambda _: [])
    found = _guard(file, lambda: [other.encode(text) for text, *_ in rows])
    differing = [
        (text, ids, others)
        for (text, ids, _, names), others in zip(rows, found, strict=True)
        if others != ids and not names and not affected_by(text)
    ]
    if differing:
        text, ids, others = differing[0]
        yield (
            f"{first} and {name} contradict each other in {len(differing):,} of {len(rows):,} "
            f"texts, first in {show_text(text)}: {show_ids(ids, others)} and "
            f"{show_ids(others, ids)}; GGUF files follow {first}."
        )


def _sample(reference: "Reference") -> list[str]:
    """Texts of tokens from all over the vocabulary, each beside others that lie far from it."""
    count = min(reference.n_ids, _SAMPLED)
    ids = [i * reference.n_ids // count for i in range(count)]
    apart = -(-count // _TOGETHER)
    return [reference.decode(ids[start::apart]) for start in range(apart)]


def _guard(file: Path, work: Callable[[], T]) -> T:
    """Let a library's failure, a panic included, be a sentence about the file."""
    try:
        return work()
    except (TokenizerError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of Rust is no Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TokenizerError(
            f"{file} cannot be used by the library that reads it ({reason}); download it again."
        ) from None


if __name__ == "__main__":
    main()
