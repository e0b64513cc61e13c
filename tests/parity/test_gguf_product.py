"""Every quant of every architecture, whole and byte for byte: an hour, by hand (-m search)."""

from pathlib import Path

import pytest

from tests.architectures.ggufs import small_ggufs
from tests.architectures.small import SMALL
from tests.parity.both_ways import NEED_IMATRIX, Source
from tests.parity.test_gguf_sources import QUANTS, buildable, imatrix_of


@pytest.mark.search
@pytest.mark.parametrize("name", SMALL)
def test_every_quant(name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With an importance matrix and, where it can be, without."""
    gguf = small_ggufs(tmp_path_factory)[name]
    quants = buildable(gguf, QUANTS)
    imatrix = imatrix_of(gguf, tmp_path / "imatrix.gguf")
    (tmp_path / "plain").mkdir()
    Source(gguf, gguf).compare(quants, tmp_path, imatrix=imatrix)
    plain = [quant for quant in quants if quant not in NEED_IMATRIX]
    Source(gguf, gguf).compare(plain, tmp_path / "plain")
