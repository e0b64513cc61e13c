"""Where the router of a mixture sends tokens."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Routing:
    """Where the router of one layer sent the tokens: per expert, its own and the borrowed ones.

    ``squares`` are the sums of its squared gates: how often and how strongly it was picked.
    """

    tokens: tuple[int, ...]
    borrowed: tuple[int, ...]
    squares: tuple[float, ...] = ()
