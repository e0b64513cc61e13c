"""The part of a config.json that is about text: models that see or hear nest it."""

from collections.abc import Mapping
from typing import Any

TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that is about text."""
    for key in TEXT_PARTS:
        if isinstance(inner := config.get(key), Mapping):
            return text_config(inner)
    return config
