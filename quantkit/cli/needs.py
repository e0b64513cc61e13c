"""Which options of commands do something only beside others: see `quantkit.api.needs`."""

from collections.abc import Sequence
from dataclasses import dataclass

import typer

from quantkit.api.needs import Need


def typed(command: typer.Context) -> frozenset[str]:
    """The options that were typed, by their parameters' names."""
    sources = {name: command.get_parameter_source(name) for name in command.params}
    return frozenset(n for n, by in sources.items() if by and not by.name.startswith("DEFAULT"))


@dataclass(frozen=True, slots=True)
class DensifyWish:
    """What becomes of the experts: the name of a merge, None for one expert alone."""

    merge: str | None

    @property
    def runs(self) -> bool:
        """Whether a text is run through the model."""
        return self.merge in ("routed", "fit")


def _merging(option: str) -> Need[DensifyWish]:
    why = "goes with --merge routed and --merge fit; leave it out"
    return Need(option, option.removeprefix("--"), lambda wish: wish.runs, why)


DENSIFY: tuple[Need[DensifyWish], ...] = (
    Need(
        "--weights",
        "weights",
        lambda wish: wish.merge == "linear",
        "goes with --merge linear alone; leave it out",
    ),
    Need(
        "--rounds",
        "rounds",
        lambda wish: wish.merge == "fit",
        "goes with --merge fit alone; leave it out",
    ),
    *map(_merging, ("--text", "--chat", "--chunks", "--context", "--device")),
)


@dataclass(frozen=True, slots=True)
class PerplexityWish:
    """What is measured: names of checkpoints, and of what llama.cpp runs."""

    checkpoints: Sequence[str]
    artifacts: Sequence[str]


PERPLEXITY: tuple[Need[PerplexityWish], ...] = (
    Need(
        "--experts",
        "experts",
        lambda wish: not wish.artifacts,
        "works on Mixtral checkpoints only; measure GGUF files in a separate command",
    ),
    Need(
        "--device",
        "device",
        lambda wish: bool(wish.checkpoints),
        "is for checkpoints, and all of these are run in llama.cpp; leave it out",
    ),
    Need(
        "--jobs",
        "threads",
        lambda wish: bool(wish.artifacts),
        "is for llama.cpp, and none of these is run in it; leave it out",
    ),
)
