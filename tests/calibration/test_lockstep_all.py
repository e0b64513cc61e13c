"""Every small model that predicts tokens, layer by layer, as transformers runs it: by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from quantkit.calibration.lockstep.run import run
from quantkit.calibration.lockstep.states import States
from tests.architectures.small import SMALL
from tests.calibration.small_models import (
    CHUNKS,
    CPU,
    difference,
    opened,
    ordinary_logits,
    small_model,
    some_tokens,
    streamed_logits,
    with_fused_names,
)

pytestmark = pytest.mark.search

# What is not a decoder, or none that transformers makes of the small config.json.
ENCODERS = {"t5", "t5encoder", "bert", "roberta", "nomic-bert", "modern-bert", "eurobert"}
OTHERS = {"gemma-embedding", "rwkv6", "rwkv7", "deepseek", "mistral3"}
LOOPED = {"hrm_text"}  # runs its layers more than once
NAMES = sorted(SMALL.keys() - ENCODERS - OTHERS - LOOPED)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_ordinary_forwards_and_a_stopped_run_goes_on(
    name: str, tmp_path: Path
) -> None:
    folder = small_model(name, tmp_path / "model")
    tokens = some_tokens()
    theirs = ordinary_logits(folder, tokens)
    assert difference(streamed_logits(folder, tokens), theirs) < 1e-6
    fused = with_fused_names(folder, tmp_path / "fused")
    assert difference(streamed_logits(fused, tokens), theirs) < 1e-6
    found: dict[int, Tensor] = {}
    crcs: list[int] = []
    for resumed in (0, 1):
        states = States(tmp_path, CHUNKS, CPU, spill=True, durable=True)
        if resumed:
            states.resume(1, crcs[0])

        def finish_layer(_layer: int, _routing: object, states: States = states) -> None:
            crcs.append(states.commit())
            states.turn_over()
            if len(crcs) == 1:
                raise ZeroDivisionError

        forward = opened(folder)
        if not resumed:
            with pytest.raises(ZeroDivisionError):
                run(forward, tokens, states, found.__setitem__, finish_layer=finish_layer)
        else:
            run(forward, tokens, states, found.__setitem__, finish_layer=finish_layer, resumed=1)
    again = streamed_logits(folder, tokens)
    assert all(torch.equal(found[chunk], again[chunk]) for chunk in range(CHUNKS))
