"""A chat template, rendered for two turns: in jinja2's sandbox, in a process of its own.

The sandbox keeps a template from Python's objects. It does not keep it from counting for hours or
filling the memory, so the process has a time limit and a memory limit.
"""

import json
import subprocess
import sys
from collections.abc import Mapping

_SECONDS = 10
_MEMORY = 2**30
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
    request = json.dumps({"template": template, "tokens": dict(tokens)})
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__],
            input=request,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
        text = json.loads(done.stdout)["text"]
    except (subprocess.SubprocessError, OSError, ValueError, KeyError):
        return None
    return text if isinstance(text, str) and 0 < len(text) <= _MOST_CHARACTERS else None


def _render(template: str, tokens: Mapping[str, str]) -> str:
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda _format: "{date}"
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    compiled = environment.from_string(template)
    turns: tuple[Mapping[str, str], ...]
    try:
        turns = (_SYSTEM, *_TURNS)
        text = compiled.render(messages=turns, add_generation_prompt=True, **tokens)
        if _SYSTEM["content"] in text:
            return text
    except TemplateError:
        pass
    return compiled.render(messages=_TURNS, add_generation_prompt=True, **tokens)


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    asked = json.load(sys.stdin)
    json.dump({"text": _render(asked["template"], asked["tokens"])}, sys.stdout)
