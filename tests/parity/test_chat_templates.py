"""What quantkit says that llama.cpp makes of a chat template is what its own engine makes of it."""

import random
import re
from datetime import datetime

import pytest

from quantkit.checkpoint.chat import process
from quantkit.checkpoint.chat.chats import CHATS
from quantkit.checkpoint.chat.jinja import DATE
from tests import chat_engine
from tests.chat_templates import EXPRESSIONS, SHIPPED, TELLING

pytestmark = pytest.mark.native

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
ALL = {**SHIPPED, **TELLING}


def rendered(template: str, *, pure: bool) -> dict[str, str | None]:
    """By llama.cpp, with dates as quantkit writes them."""
    before = datetime.now()
    answers = chat_engine.rendered(template, TOKENS, list(CHATS.values()), pure=pure)
    texts = [answer.get("text") for answer in answers]
    for form in ("%d %b %Y", "%b %d %Y", "%Y"):
        for day in (before, datetime.now()):
            texts = [text and text.replace(day.strftime(form), DATE) for text in texts]
    return dict(zip(CHATS, texts, strict=True))


def described(template: str) -> dict[str, str | None]:
    jobs = [
        {"way": "llama", "template": template, "tokens": TOKENS, "chat": chat}
        for chat in CHATS.values()
    ]
    answers = process.answer(jobs)
    return {name: answer.get("text") for name, answer in zip(CHATS, answers, strict=True)}


@pytest.mark.parametrize("name", ALL)
def test_the_engine_renders_what_quantkit_says(name: str) -> None:
    assert described(ALL[name]) == rendered(ALL[name], pure=True)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_family_is_treated_apart(name: str) -> None:
    """With the parser of answers that llama.cpp makes for a template, a prompt is the same."""
    assert rendered(SHIPPED[name], pure=False) == rendered(SHIPPED[name], pure=True)


def test_a_name_that_the_converter_writes_is_no_template() -> None:
    """For tekken.json (``MistralModel.get_community_chat_template``): quantkit writes none."""
    assert set(rendered("mistral-v3-tekken", pure=False).values()) == {"mistral-v3-tekken"}


def test_what_templates_are_made_of() -> None:
    for template in EXPRESSIONS:
        assert described(template) == rendered(template, pure=True), template


def test_whitespace_around_tags() -> None:
    """Trimming changed at random, and text, comments and lines between tags."""
    source = random.Random(5)
    between = ("\n", "  ", "\t", "\n\n  ", "{# c #}", "{#- c -#}", " x ")
    for _ in range(40):
        parts = re.split(r"(\{%-?|-?%\}|\{\{-?|-?\}\})", source.choice(list(SHIPPED.values())))
        for place, part in enumerate(parts):
            tag = part.strip("-")
            if place % 2 and source.random() < 0.3:
                trimmed = f"{tag}-" if tag.startswith("{") else f"-{tag}"
                after = source.choice(between) if tag.endswith("}") else ""
                parts[place] = source.choice((tag, trimmed)) + after
        template = "".join(parts)
        assert described(template) == rendered(template, pure=True), template
