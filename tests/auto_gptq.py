"""auto-gptq, the GPTQ format's reference reader, in an environment of its own."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.publishing.card import render_card
from tests.environments import python, run
from tests.publishing import cards

LOGITS = """
import os
import sys
import numpy as np
import torch
tokens, loading, download, *folders = sys.argv[1:]
for number, folder in enumerate(folders):
    os.symlink(folder, download)
    exec(loading)
    os.remove(download)
    quantized = [m for m in model.modules() if type(m).__name__ == "QuantLinear"]
    assert quantized, "nothing was loaded as quantized"
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(np.load(tokens))).logits
    np.save(f"{tokens}.{number}.npy", logits.float().numpy())
"""


def logits(
    artifacts: Sequence[Path], tokens: NDArray[np.int64], work: Path
) -> list[NDArray[np.float32]]:
    """What auto-gptq computes on the CPU with each: (chunks, context, vocabulary).

    Each is loaded by the very lines of the card that `quantkit publish` makes.
    """
    file, facts = work / "tokens.npy", cards.gptq()
    np.save(file, tokens)
    shown = re.findall(r"```python\n(.*?)```", render_card(facts), re.S)
    (loading,) = (lines for lines in shown if "auto_gptq" in lines)
    download = facts.repo_id.partition("/")[2]
    assert f'"{download}"' in loading
    loading = loading.replace(f'"{download}"', repr(str(work / download)))
    run([python("auto-gptq"), "-c", LOGITS, file, loading, work / download, *artifacts])
    return [np.load(f"{file}.{number}.npy") for number in range(len(artifacts))]
