"""Hyperparameters that the converter takes for granted, though config.json says something else.

Each is known to be wrong: a proof finds the difference, and says nothing of it once it is mended.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantkit.checkpoint.converter.mended import with_keys
from quantkit.checkpoint.gguf import Header
from quantkit.checkpoint.text_config import text_config

# By architecture, the key and the entry that counts. Of ChatGLM the converter knows the names of
# the first releases (`layernorm_epsilon`, `rope_ratio`); transformers' GlmForCausalLM has these.
_FROM_CONFIG: Mapping[str, Mapping[str, str]] = {
    "chatglm": {
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "rope.freq_base": "rope_theta",
    },
}
_EARLIER = frozenset({"layernorm_epsilon", "rope_ratio"})


def mend_hyperparameters(
    config: Mapping[str, Any], header: Header
) -> tuple[Header, frozenset[str], list[str]]:
    """The header with what config.json says, the keys that were mended, and a remark on each."""
    architecture = header.metadata.get("general.architecture")
    text = text_config(config)
    rotation = text.get("rope_parameters") or text.get("rope_scaling")
    known = {**rotation, **text} if isinstance(rotation, Mapping) else text
    keys, remarks = {}, []
    for end, entry in _FROM_CONFIG.get(str(architecture), {}).items():
        key, value = f"{architecture}.{end}", known.get(entry)
        said = header.metadata.get(key)
        if _EARLIER & known.keys() or not isinstance(value, int | float) or said is None:
            continue
        if (counts := float(np.float32(value))) != said:
            keys[key] = counts
            remarks.append(
                f"llama.cpp's converter says {said:g} for {key}, config.json {value:g} "
                f"({entry}); GGUF files follow config.json."
            )
    return with_keys(header, keys), frozenset(keys), remarks
