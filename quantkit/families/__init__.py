"""Architectures: one small file each, and the registry that finds the one a config names."""

from collections.abc import Collection, Mapping
from typing import Any

from quantkit.core.errors import CheckpointError, UnknownArchitectureError
from quantkit.families import llama, mistral, mixtral
from quantkit.families.model import Decoder, Family

FAMILIES: tuple[Family, ...] = (llama.FAMILY, mistral.FAMILY, mixtral.FAMILY)


def find_family(config: Mapping[str, Any]) -> Family:
    """The family whose architecture ``config["architectures"]`` names.

    Raises:
        CheckpointError: the config names no architecture.
        UnknownArchitectureError: it names one that no family handles.

    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(
            'config.json has no "architectures" entry; add the one it was trained as, for example '
            '["MistralForCausalLM"].'
        )
    for family in FAMILIES:
        if names[0] in family.architectures:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise UnknownArchitectureError(
        f"config.json names the architecture {names[0]}, which quantkit does not know; "
        f"it knows {known}."
    )


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether a family describes what config.json names, or it names nothing that anybody could."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        return True
    return any(names[0] in family.architectures for family in FAMILIES)


def describe(config: Mapping[str, Any], names: Collection[str] = ()) -> Decoder:
    """The model that config.json promises, whose tensors in the checkpoint have these names.

    Raises:
        CheckpointError: the config is incomplete, or contradicts itself.
        UnknownArchitectureError: no family handles its architecture.

    """
    return find_family(config).describe(config, names)
