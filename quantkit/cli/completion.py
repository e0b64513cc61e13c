"""What a shell completes beside options and files: quants, machines, GPUs, bundled models.

Each function gives words with what they are, which zsh and fish show. Only data is read, so that
TAB answers at once.
"""

from collections import Counter
from collections.abc import Iterable

from quantkit.core.profiles import load_profile, profile_names
from quantkit.core.units import counted

_Words = list[tuple[str, str]]


def complete_quant(incomplete: str) -> _Words:
    """Quants and groups of them; of a list with commas, the last."""
    from quantkit.planning.quants import SOURCE

    # Not `known_quants`, which imports gguf for what their encodings are.
    rows = {**load_profile("quants.toml"), **load_profile("transformers.toml")}
    groups = [group for row in rows.values() for group in row.get("groups", ())]
    words = {SOURCE: "the model as it is"} | {name: row["good_for"] for name, row in rows.items()}
    words |= {group: counted(number, "quant") for group, number in Counter(groups).items()}
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
