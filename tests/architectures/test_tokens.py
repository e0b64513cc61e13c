"""The tests' tokenizers come out the same in every process.

So a checkpoint that is made twice is the same checkpoint.
"""

import subprocess
import sys
from hashlib import sha256

from tests.architectures import tokens
from tests.checkpoint.vocabularies import piece_bpe

MADE = (tokens.byte_level, tokens.word_piece, tokens.world, lambda: str(piece_bpe()))
HERE = "from tests.architectures import test_tokens; print(*test_tokens.sums())"


def sums() -> list[str]:
    return [sha256(make().encode()).hexdigest() for make in MADE]


def test_every_process_makes_the_same() -> None:
    told = subprocess.run([sys.executable, "-c", HERE], capture_output=True, text=True, check=True)

    assert told.stdout.split() == sums()
