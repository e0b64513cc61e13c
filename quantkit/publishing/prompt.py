"""A chat template, rendered for two turns."""

from collections.abc import Mapping

from quantkit.checkpoint.chat.rendering import render

_SECONDS = 10
_MOST_CHARACTERS = 4000
_TURNS = (
    {"role": "user", "content": "{prompt}"},
    {"role": "assistant", "content": "{answer}"},
    {"role": "user", "content": "{next prompt}"},
)
_SYSTEM = {"role": "system", "content": "{system prompt}"}


def render_prompt(template: str, tokens: Mapping[str, str]) -> str | None:
    """What a chat looks like to the model; None where the template does not render.

    A system prompt is shown if the template takes one.

    Args:
        template: in jinja2, as in ``tokenizer_config.json``.
        tokens: ``bos_token`` and ``eos_token``.

    """
    jobs = [
        {
            "way": "original",
            "template": template,
            "tokens": dict(tokens),
            "chat": {"messages": messages, "add_generation_prompt": True},
        }
        for messages in ((_SYSTEM, *_TURNS), _TURNS)
    ]
    texts = [answer.get("text", "") for answer in render(jobs, _SECONDS)]
    if not texts:
        return None
    text = texts[0] if _SYSTEM["content"] in texts[0] else texts[1]
    return text if 0 < len(text) <= _MOST_CHARACTERS else None
