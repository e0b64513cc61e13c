"""No test may depend on how long something takes.

Machines differ fourfold in speed, and others use them. Tests wait for events: the end of a process,
a line in a pipe, a process that stops itself. A process that hangs is ended by pytest's time limit.
"""

import re
from pathlib import Path

TESTS = Path(__file__).parent
CLOCKS = re.compile(
    r"\b(?:sleep|usleep|Timer|monotonic|perf_counter|process_time|alarm|setitimer)\("
    r"|\btime\.time\(|\btimeout *[=(:](?! ?(?:limit|LIMIT)\b)"
    r"|\bdeadline\b|\.wait\(\d"
)
REASON = re.compile(r"# time: \w")


def unexplained(lines: list[str]) -> list[int]:
    """The numbers of lines with a clock, from 1, that give no reason there or in the line above."""
    return [
        number + 1
        for number, line in enumerate(lines)
        if CLOCKS.search(line)
        and not REASON.search(" ".join(lines[max(0, number - 1) : number + 1]))
    ]


def test_every_clock_in_the_tests_has_a_reason() -> None:
    """`# time: REASON`: it is only reported, or bounded from above and far away."""
    found = {
        f"{file.relative_to(TESTS)}:{number}: {lines[number - 1].strip()}"
        for file in TESTS.rglob("*.py")
        if file != Path(__file__)
        for lines in [file.read_text().splitlines()]
        for number in unexplained(lines)
    }
    assert found == set()


def test_a_clock_without_a_reason_is_found() -> None:
    lines = [
        "time.sleep(1)",
        "",
        "# time: reported",
        "a = time.monotonic()",
        "b = time.monotonic()",
    ]
    assert unexplained(lines) == [1, 5]
    assert unexplained(["process.wait(timeout=5)", "threading.Timer(1, f)", "x.wait(3)"]) == [
        1,
        2,
        3,
    ]
