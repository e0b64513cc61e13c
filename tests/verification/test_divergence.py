import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.core.errors import SmokeError
from quantkit.verification.divergence import (
    PERCENTILES,
    Measures,
    Tally,
    mean_and_error,
    pack_log_probs,
    percentile,
    row_words,
    unpack_log_probs,
)
from quantkit.verification.reference import (
    RecordedText,
    read_text,
    read_window,
    write_header,
    write_window,
)

N_VOCAB = 101  # odd: a row is padded


def some_logits(n: int, *, seed: int = 0, spread: float = 1.5) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, spread, (n, N_VOCAB)).astype(np.float32)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def measured(
    ours: NDArray[np.float32], reference: NDArray[np.float32], targets: NDArray[np.int64]
) -> Measures:
    tally = Tally()
    for window in np.split(np.arange(len(targets)), 2):
        tally.add(ours[window], pack_log_probs(reference[window]), targets[window])
    return tally.measures()


def test_packing_is_true_to_half_a_step() -> None:
    logits = some_logits(40)
    packed = pack_log_probs(logits)
    assert packed.shape == (40, row_words(N_VOCAB))
    step = (logits.max(1) - np.maximum(logits.min(1), logits.max(1) - 16)) / 65535
    exact = np.maximum(log_softmax(logits), log_softmax(logits).max(1, keepdims=True) - 16)
    error = np.abs(unpack_log_probs(packed, N_VOCAB) - exact)
    assert (error <= 0.5 * step[:, None] + 4e-6).all()


def test_logits_all_alike_are_packed_without_a_step() -> None:
    packed = pack_log_probs(np.full((1, N_VOCAB), 7, np.float32))
    assert unpack_log_probs(packed, N_VOCAB) == pytest.approx(-math.log(N_VOCAB))


def test_figures_are_those_of_plain_formulas() -> None:
    n = 400
    rng = np.random.default_rng(3)
    reference = some_logits(n)
    ours = reference + some_logits(n, seed=1, spread=0.3)
    targets = rng.integers(0, N_VOCAB, n)
    p, q = log_softmax(reference), log_softmax(ours)
    kld = (np.exp(p) * (p - q)).sum(1)
    rows = np.arange(n)
    nll, nll_reference = -q[rows, targets], -p[rows, targets]
    dp = np.exp(-nll) - np.exp(-nll_reference)
    same = p.argmax(1) == q.argmax(1)

    found = measured(ours, reference, targets)
    assert found.n_tokens == n
    assert found.ppl == pytest.approx(math.exp(nll.mean()), rel=1e-5)
    assert found.ppl_pm == pytest.approx(
        math.exp(nll.mean()) * nll.std() / math.sqrt(n - 1), rel=1e-5
    )
    gap = nll - nll_reference
    assert found.ppl_ratio == pytest.approx(math.exp(gap.mean()), rel=1e-4)
    assert found.ppl_ratio_pm == pytest.approx(
        math.exp(gap.mean()) * gap.std() / math.sqrt(n - 1), rel=1e-3
    )
    assert found.kld == pytest.approx(kld.mean(), rel=1e-3)
    assert found.kld_pm == pytest.approx(kld.std() / math.sqrt(n - 1), rel=1e-3)
    assert found.kld_max == pytest.approx(kld.max(), rel=1e-3)
    assert found.kld_percentiles == pytest.approx(np.percentile(kld, PERCENTILES), rel=3e-3)
    assert found.same_top == same.mean()
    assert 0 < found.same_top < 1
    assert found.rms_dp == pytest.approx(math.sqrt((dp * dp).mean()), rel=1e-3)
    assert found.mean_dp == pytest.approx(dp.mean(), abs=1e-6)


def test_a_model_against_itself_differs_by_rounding_alone() -> None:
    logits = some_logits(64)
    found = measured(logits, logits, np.zeros(64, np.int64))
    assert abs(found.kld) < 1e-4
    assert found.same_top == 1
    assert found.ppl_ratio == pytest.approx(1, abs=1e-4)


def test_one_value_has_no_error_and_percentiles_interpolate() -> None:
    assert mean_and_error(np.array([3.0])) == (3.0, 0.0)
    assert percentile([0.0, 1.0, 3.0], 0.75) == 2.0
    assert percentile([5.0], 0.999) == 5.0


def test_a_reference_file_gives_back_what_went_in(tmp_path: Path) -> None:
    tokens = np.arange(2 * 16, dtype=np.int32).reshape(2, 16)
    text = RecordedText(tokens, N_VOCAB)
    windows = [some_logits(text.n_scored, seed=seed) for seed in range(2)]
    file = tmp_path / "reference.kld"
    with file.open("wb") as stream:
        write_header(stream, text)
        for logits in windows:
            write_window(stream, logits)
    assert file.stat().st_size == text.file_bytes
    back = read_text(file)
    assert back.n_vocab == N_VOCAB
    assert (back.tokens == tokens).all()
    for index, logits in enumerate(windows):
        assert (read_window(file, back, index) == pack_log_probs(logits)).all()


@pytest.mark.parametrize("keep", [0, 19, 20, 50, 83, 100, -1])  # 50, 83: within a token
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    text = RecordedText(np.zeros((1, 16), np.int32), N_VOCAB)
    file = tmp_path / "reference.kld"
    with file.open("wb") as stream:
        write_header(stream, text)
        write_window(stream, some_logits(text.n_scored))
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SmokeError, match=r"cut short|no log-prob"):
        read_text(file)
