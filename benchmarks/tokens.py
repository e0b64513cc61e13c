"""What comparing tokens adds to the smoke test of a build: processor time, and time of the clock.

    python -m benchmarks.tokens [TOKENIZER]

TOKENIZER is a tokenizer.model or tokenizer.json (Mistral's ships in the package mistral-common);
by default one with 32,000 pieces is trained on the text of Python's own help. 1,000 special tokens
are added to a second copy.
"""

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import TypeVar

from quantkit.checkpoint.tokenizer import add_tokenizer
from quantkit.verification.smoke import smoke
from quantkit.verification.specimen import write_specimen
from quantkit.verification.tokens import expect_tokens

T = TypeVar("T")
_RUNS = 7


def train(file: Path) -> None:
    """A SentencePiece BPE of 32,000 pieces; the help has fewer words, so several make a piece."""
    from sentencepiece import SentencePieceTrainer

    lines = [line for topic in topics.values() for line in topic.splitlines() if line]
    with file.open("wb") as out:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            vocab_size=32000,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_by_whitespace=False,
            max_sentencepiece_length=64,
            minloglevel=2,
        )


def spent() -> float:
    """Seconds of processor time, children included."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(work: Callable[[], T]) -> tuple[T, float, float]:
    """A result, and the seconds of processor and clock that it took."""
    processor, clock = spent(), time.perf_counter()
    result = work()
    return result, spent() - processor, time.perf_counter() - clock


def report(folder: Path, n_vocab: int, file: Path) -> None:
    """Print the medians for one tokenizer folder."""
    config = {"model_type": "llama", "vocab_size": n_vocab}
    write_specimen(
        file, add_vocabulary=lambda writer: add_tokenizer(writer, folder, config), n_vocab=n_vocab
    )
    smoke(file, threads=1)
    rows = []
    for _ in range(_RUNS):
        expected, *asking = measure(lambda: expect_tokens(folder, config))
        _, *without = measure(lambda: smoke(file, threads=1))
        result, *compared = measure(lambda: smoke(file, threads=1, tokens=expected))  # noqa: B023 - called here
        assert result.ok, result.verdict
        more = [b - a for a, b in zip(without, compared, strict=True)]
        rows.append((*asking, *more))
    middle = [statistics.median(column) for column in zip(*rows, strict=True)]
    print(f"{n_vocab:,} tokens, {len(expected.texts):,} texts: seconds of processor (and clock)")
    print(f"  once per build {middle[0]:.2f} ({middle[1]:.2f})")
    print(f"  per file       {middle[2]:.2f} ({middle[3]:.2f})")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="quantkit-") as name:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else None
        plain, special = Path(name) / "plain", Path(name) / "special"
        kind = "tokenizer.json" if given and given.suffix == ".json" else "tokenizer.model"
        for folder in (plain, special):
            folder.mkdir()
        if given:
            (plain / kind).write_bytes(given.read_bytes())
        else:
            train(plain / kind)
        (special / kind).write_bytes((plain / kind).read_bytes())
        n_vocab = _count(plain / kind)
        names = {str(n_vocab + i): {"content": f"<|{i}|>", "special": True} for i in range(1000)}
        settings = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": names}
        (special / "tokenizer_config.json").write_text(json.dumps(settings))
        report(plain, n_vocab, Path(name) / "plain.gguf")
        report(special, n_vocab + 1000, Path(name) / "special.gguf")


def _count(file: Path) -> int:
    if file.suffix == ".json":
        fast = json.loads(file.read_text())
        added = (token["id"] for token in fast["added_tokens"])
        last: int = max(*fast["model"]["vocab"].values(), *added)
        return last + 1
    from quantkit.checkpoint.tokenizer.sentencepiece import open_model

    n_vocab: int = open_model(file).vocab_size()
    return n_vocab


if __name__ == "__main__":
    main()
