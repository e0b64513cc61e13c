"""The help topics in parts that have nothing in common."""

from quantkit.calibration.text import built_in_text
from quantkit.core.topics import (
    TO_CHOOSE,
    TO_JUDGE,
    other_paragraphs,
    topics_to_choose_by,
    whole_topics,
)
from quantkit.verification.compare import default_text


def paragraphs(text: str) -> set[str]:
    return {" ".join(part.split()) for part in text.split("\n\n") if part.strip()}


def test_what_is_measured_on_is_not_what_was_calibrated_on_or_chosen_by() -> None:
    judging, choosing = paragraphs(default_text()), paragraphs(topics_to_choose_by())
    others = {" ".join(paragraph.split()) for paragraph in other_paragraphs()}
    assert default_text() == whole_topics(TO_JUDGE)
    assert not judging & choosing
    assert not others & (judging | choosing)
    shared = paragraphs(built_in_text()) & (judging | choosing)
    assert all(len(paragraph) < 20 for paragraph in shared)  # "For example:"
    assert len(choosing) > 0.9 * len(paragraphs(whole_topics(TO_CHOOSE)))
    assert 30_000 < len(topics_to_choose_by()) < 60_000
    assert len("".join(others)) > 200_000
