"""Hyperparameters that the converter takes for granted are config.json's."""

import struct
from typing import Any

import numpy as np

from quantkit.checkpoint.converter.hyperparameters import mend_hyperparameters
from quantkit.checkpoint.gguf import Header
from quantkit.families.keys import Kind, pack
from quantkit.families.model import KeyValue

EPSILON = "chatglm.attention.layer_norm_rms_epsilon"
BASE = "chatglm.rope.freq_base"


def described(architecture: str = "chatglm") -> Header:
    keys = {EPSILON: float(np.float32(1e-5)), BASE: 10000.0}
    entries = tuple(KeyValue(key, pack(key, value, Kind.FLOAT32)) for key, value in keys.items())
    return Header({"general.architecture": architecture, **keys}, (), 0, entries=entries)


def mended(config: dict[str, Any], architecture: str = "chatglm") -> frozenset[str]:
    return mend_hyperparameters(config, described(architecture))[1]


def test_glm_has_the_epsilon_and_the_base_of_its_config() -> None:
    config = {"rms_norm_eps": 1.5625e-07, "rope_parameters": {"rope_theta": 5e6}}
    header, keys, remarks = mend_hyperparameters(config, described())
    assert keys == {EPSILON, BASE}
    assert header.metadata[EPSILON] == float(np.float32(1.5625e-07))
    assert [entry.key for entry in header.entries] == [EPSILON, BASE]
    assert header.entries[0].packed.endswith(struct.pack("<f", 1.5625e-07))
    assert header.entries[1].packed.endswith(struct.pack("<f", 5e6))
    assert "config.json 1.5625e-07 (rms_norm_eps); GGUF files follow config.json" in remarks[0]


def test_what_the_converter_has_right_stays() -> None:
    assert mended({"rms_norm_eps": 1e-5, "rope_theta": 10000}) == frozenset()
    assert mended({"rms_norm_eps": 1.5625e-07}) == {EPSILON}
    # As the first releases have it, which the converter reads.
    assert mended({"layernorm_epsilon": 1e-5, "rms_norm_eps": 1e-6}) == frozenset()
    assert mended({"rms_norm_eps": 1e-6}, "glm4") == frozenset()
