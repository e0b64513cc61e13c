"""What a shell completes beside options and files: quants, machines, GPUs, bundled models.

Each function gives words with what they are, which zsh and fish show. Only data is read, so that
TAB answers at once.
"""

from collections.abc import Iterable

from quantkit.core.profiles import load_profile, profile_names
from quantkit.core.units import counted

_Words = list[tuple[str, str]]


def complete_quant(incomplete: str) -> _Words:
    """Quants and groups of them; of a list with commas, the last."""
    from quantkit.planning.quants import known_groups, known_quants

    words = {name: quant.good_for for name, quant in known_quants().items()}
    words |= {name: counted(len(members), "quant") for name, members in known_groups().items()}
    before, comma, _ = incomplete.rpartition(",")
    return [(f"{before}{comma}{name}", about) for name, about in words.items()]


def complete_hardware() -> _Words:
    """Machines that are known by name."""
    return _titled("hardware", profile_names("hardware"))


def complete_gpu() -> _Words:
    """GPUs that are known by name: of a machine whose memory is one, no GPU can be had alone."""
    machines = {name: load_profile(f"hardware/{name}.toml") for name in profile_names("hardware")}
    names = (name for name, one in machines.items() if one.get("gpu") and not one.get("unified"))
    return _titled("hardware", names)


def complete_model() -> _Words:
    """Models that need no download."""
    return _titled("models", profile_names("models"))


def _titled(kind: str, names: Iterable[str]) -> _Words:
    return [(name, str(load_profile(f"{kind}/{name}.toml")["title"])) for name in names]
