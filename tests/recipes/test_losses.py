"""Measured losses are kept as they are, and a damaged file is refused in one sentence."""

from pathlib import Path

import pytest

from quantkit.core.errors import PlanError
from quantkit.recipes.losses import Measured, read_measured, write_measured

_MEASURED = Measured(
    arch="llama",
    sensitivities={"blk.1.attn_q.weight": 0.1 + 0.2, "blk.0.attn_q.weight": 0.0},
    errors={
        ("blk.0.attn_q.weight", "Q2_K"): 1 / 3,
        ("blk.1.attn_q.weight", "Q2_K"): 1e-300,
        ("output.weight", "Q6_K"): 2e-4,
    },
    basis="28 chunks of a text",
    imatrix="ab" * 32,
)


def test_a_loss_is_sensitivity_times_error_or_unknown() -> None:
    assert _MEASURED.loss("blk.0.attn_q.weight", "Q2_K") == 0.0
    assert _MEASURED.loss("blk.1.attn_q.weight", "Q2_K") == (0.1 + 0.2) * 1e-300
    assert _MEASURED.loss("blk.0.attn_q.weight", "Q3_K") is None
    assert _MEASURED.loss("output.weight", "Q6_K") is None


def test_what_is_kept_is_read_as_it_was(tmp_path: Path) -> None:
    write_measured(tmp_path / "losses.json", _MEASURED)
    assert read_measured(tmp_path / "losses.json") == _MEASURED
    first = (tmp_path / "losses.json").read_bytes()
    backwards = Measured(
        _MEASURED.arch,
        dict(sorted(_MEASURED.sensitivities.items())),
        dict(sorted(_MEASURED.errors.items(), reverse=True)),
        _MEASURED.basis,
        _MEASURED.imatrix,
    )
    write_measured(tmp_path / "losses.json", backwards)
    assert (tmp_path / "losses.json").read_bytes() == first


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[", "is not JSON"),
        ('{"version": 1, "arch": "llama"}', "tensors"),
        ('{"version": 2, "arch": "llama", "tensors": {}}', "this version"),
        ('{"version": 1, "arch": "llama", "tensors": {"a": {"sensitivity": -1}}}', ">= 0"),
        (
            '{"version": 1, "arch": "llama", "tensors": {"a": {"errors": {"Q2_K": NaN}}}}',
            "laid out",
        ),
        ('{"version": 1, "arch": "llama", "tensors": {"a": {"errors": {"Q2_K": "1"}}}}', "float"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "losses.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=why) as raised:
        read_measured(path)
    assert str(path) in str(raised.value)
