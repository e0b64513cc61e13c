"""Text from anywhere made safe to print: one line, nothing that a terminal obeys, not endless."""

from reprlib import Repr

LONGEST = 580
"""Characters of a sentence on an error: what is more is cut out of its middle."""

_CUT = " [...] "

_short = Repr()
_short.maxstring = 120
_short.maxother = 120
_short.maxlong = 40
_short.maxlist = _short.maxtuple = 8
_short.maxdict = 4
_short.maxlevel = 3


def one_line(text: str, most: int = LONGEST) -> str:
    """A text as one printable line of at most ``most`` characters.

    What does not print (line breaks, escape codes, marks that turn the direction of writing,
    halves of surrogate pairs) is escaped as Python does it. Of a long text the beginning, which
    names the file, and the end, which tells what to do, are kept.
    """
    head = most * 2 // 3
    tail = most - head - len(_CUT)
    long = len(text) > most
    if long:
        text = text[:most] + text[-most:] if len(text) > 2 * most else text
    line = "".join(c if c.isprintable() else _escaped(c) for c in text)
    if len(line) <= most and not long:
        return line
    return line[:head] + _CUT + line[-tail:]


def quoted(value: object) -> str:
    """A value from a file for a sentence: as Python writes it, and cut where it is long."""
    try:
        return one_line(_short.repr(value), 160)
    except ValueError:  # an integer with more digits than Python prints
        return f"a number of {type(value).__name__} too long to print"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
