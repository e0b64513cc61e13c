"""Chat templates: the one that transformers takes, and what llama.cpp makes of it, named."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint.chat import process, rendering
from quantkit.checkpoint.chat.chats import CHATS
from quantkit.checkpoint.chat.rendering import render, template_remarks
from quantkit.checkpoint.tokenizer.chat_template import chat_remarks, template_metadata
from quantkit.checkpoint.tokenizer.source import TokenizerSource
from tests.chat_templates import CHATML, EXPRESSIONS, GEMMA, HEADERS, SHIPPED, TELLING

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
LLAMA = {"bos_token": "<s>", "eos_token": "</s>"}


@cache
def tokenizer(**tokens: str) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE(vocab={"<unk>": 0}, merges=[], unk_token="<unk>"))  # noqa: S106
    return PreTrainedTokenizerFast(tokenizer_object=plain, **tokens)


def of_transformers(template: str, chat: Mapping[str, Any]) -> str | None:
    options = {"tools": chat["tools"], "add_generation_prompt": chat["add_generation_prompt"]}
    try:
        text: str = tokenizer(**TOKENS).apply_chat_template(
            chat["messages"], chat_template=template, tokenize=False, **options
        )
    except Exception:  # noqa: BLE001 - a template may fail in any way
        return None
    return text


ALL = {**SHIPPED, **{name: text for name, text in TELLING.items() if name != "the date"}}


@pytest.mark.parametrize("name", ALL)
def test_the_sandbox_renders_as_transformers(name: str) -> None:
    job = {"way": "original", "template": ALL[name], "tokens": TOKENS}
    answers = process.answer({**job, "chat": chat} for chat in CHATS.values())
    for chat, answer in zip(CHATS.values(), answers, strict=True):
        assert answer.get("text") == of_transformers(ALL[name], chat)


def test_the_process_imports_nothing_that_is_slow() -> None:
    code = "import sys, quantkit.checkpoint.chat.process; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    ours = {name for name in done.stdout.split() if name.startswith("quantkit.")}
    chat = "quantkit.checkpoint.chat"
    allowed = ("quantkit.checkpoint", chat, "quantkit.core", "quantkit.core.version")
    assert all(name in allowed or name.startswith(f"{chat}.") for name in ours)
    assert not {"numpy", "tokenizers", "gguf", "pydantic"} & set(done.stdout.split())


def test_the_sandbox_has_what_templates_are_made_of() -> None:
    chats = [CHATS["one message"], CHATS["turns after a tool's result"]]
    for template in EXPRESSIONS:
        if "random" in template:
            continue
        job = {"way": "original", "template": template, "tokens": TOKENS}
        for chat, answer in zip(
            chats, process.answer({**job, "chat": c} for c in chats), strict=True
        ):
            assert answer.get("text") == of_transformers(template, chat), template


def test_a_template_is_rendered_in_a_process_of_its_own() -> None:
    def rendered(template: str) -> list[dict[str, str]]:
        messages = [{"role": "user", "content": "Hi"}]
        chat = {"messages": messages, "tools": None, "add_generation_prompt": True}
        return render([{"way": "original", "template": template, "tokens": TOKENS, "chat": chat}])

    (found,) = rendered(CHATML)
    assert found["text"] == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    for refused in ("{{ raise_exception('no') }}", "{{ 'a' * 10**11 }}"):
        assert not any("text" in answer for answer in rendered(refused))


# --- which template ---------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "settings": {"tokenizer_config.json": {"chat_template": "S"}},
    "a file": {"chat_template.jinja": "J"},
    "a file without settings": {"chat_template.jinja": "J", "tokenizer_config.json": None},
    "a file beside settings": {
        "chat_template.jinja": "J\r\n", "tokenizer_config.json": {"chat_template": "S"},
    },
    "a file beside null": {
        "chat_template.jinja": "J", "tokenizer_config.json": {"chat_template": None},
    },
    "a file beside a list": {
        "chat_template.jinja": "J",
        "tokenizer_config.json": {"chat_template": [{"name": "tool_use", "template": "T"}]},
    },
    "a list": {
        "tokenizer_config.json": {
            "chat_template": [
                {"name": "default", "template": "S"}, {"name": "tool_use", "template": "T"}
            ]
        }
    },
    "an object": {"tokenizer_config.json": {"chat_template": {"default": "S", "tool_use": "T"}}},
    "files": {"chat_template.jinja": "J", "additional_chat_templates/tool_use.jinja": "T"},
    "files beside settings": {
        "chat_template.jinja": "J", "additional_chat_templates/tool_use.jinja": "T",
        "tokenizer_config.json": {"chat_template": "S"},
    },
    "only another file": {
        "additional_chat_templates/tool_use.jinja": "T",
        "tokenizer_config.json": {"chat_template": "S"},
    },
    "nothing": {},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_template_is_the_one_that_transformers_takes(case: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer(**TOKENS).save_pretrained(tmp_path)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, value in {"tokenizer_config.json": {}, **CASES[case]}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if value is None:
            path.unlink()
        elif isinstance(value, str):
            path.write_bytes(value.encode())
        else:
            path.write_text(json.dumps(settings | value))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template or {}
    wanted = {"default": theirs} if isinstance(theirs, str) else theirs
    path = tmp_path / "tokenizer_config.json"
    read = json.loads(path.read_text()) if path.exists() else {}
    keys = template_metadata(TokenizerSource(tmp_path, {}, 0, read, {}, {}, None, {}, None))
    assert keys.pop("tokenizer.chat_templates", []) == [n for n in wanted if n != "default"]
    default = {"default": keys.pop("tokenizer.chat_template")}
    named = {key.rpartition(".")[2]: text for key, text in keys.items()}
    assert {name: text for name, text in {**default, **named}.items() if text} == wanted


# --- what llama.cpp renders otherwise ---------------------------------------------------------


def remarks(template: str, *, adds_bos: bool = False, **more: str) -> str:
    templates = {"default": template, **more}
    return "\n".join(template_remarks(templates, TOKENS, LLAMA, adds_bos=adds_bos))


EQUAL = set(SHIPPED) - {"headers", "gemma", "only parts"}


@pytest.mark.parametrize("name", sorted(EQUAL))
def test_nothing_is_said_of_what_is_equal(name: str) -> None:
    assert not remarks(SHIPPED[name])


SAID = {
    "a variable that a loop sets now and then": "otherwise than transformers .*several turns",
    "the same within loops": "otherwise than transformers .every conversation",
    "none printed": "instead of 'NoneNone",
    "none by default": r"\(every conversation\): 'xy",
    "an object by default": "cannot render .*it has no filter 'default' for a value of kind dict",
    "split at spaces": "otherwise than transformers .*empty messages",
    "the last character": "otherwise than transformers",
    "upper case": "otherwise than transformers",
    "an unknown filter": "cannot render the chat template .tools, .*no filter 'wordwrap'",
    "unique": "cannot render",
    "a filter mapped": "cannot render .*filter-mapping",
    "sorted keys": "cannot render .*sort_keys",
    "an escape": r"cannot read the chat template: it does not know the escape \\u",
    "a power": r"does not know the operator \*\*",
    "a whole quotient": "does not know the operator //",
    "with": "does not know {% with %}",
    "raw": "does not know {% raw %}",
    "kept space": r"does not know {%\+",
    "cycle": "cannot render",
    "a negative choice": "does not know the sign in 'else -'",
    "named arguments": "otherwise than transformers .every conversation",
    "the padding token": "otherwise .*instead of '<pad>",
    "thinking by default": "otherwise .*'<think>",
    "tools that are none": "otherwise .*: 'T.* instead of",
    "no prompt is false": r"otherwise than transformers \(no generation prompt\)",
}


@pytest.mark.parametrize("name", SAID)
def test_what_differs_is_named(name: str) -> None:
    said = remarks(TELLING[name])
    assert re.search(SAID[name], said, re.S), said


def test_the_date_that_llama_cpp_hands_in_is_named() -> None:
    said = remarks(HEADERS)
    assert "(every conversation)" in said
    assert "Today: {date}" in said
    assert "1 Jan 2024" in said


def test_a_system_message_that_llama_cpp_moves_is_named() -> None:
    assert (
        "refuses what llama.cpp renders all the same (a system message, a system message and "
        "several turns" in remarks(GEMMA)
    )


def test_a_template_that_means_nothing_is_named() -> None:
    assert remarks("{% if x %}").startswith(
        "The chat template is not jinja2, so nothing can use it"
    )


def test_a_template_without_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    assert remarks(loop) == "The chat template does not render within 1 s and 1 GiB."


def test_a_bos_that_only_llama_cpp_adds_is_named() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert remarks(template, adds_bos=True) == (
        "The chat template writes no <s> and the tokenizer adds one: llama.cpp puts it in front "
        "(every conversation), transformers' apply_chat_template leaves it out. Nothing else "
        "differs there, and you need not change anything."
    )
    other = remarks(template + "{{ none }}", adds_bos=True)
    assert "llama.cpp renders the chat template otherwise than transformers" in other
    assert "nothing to mend" not in other
    assert not remarks(template)
    assert not remarks("{{ bos_token }}" + template, adds_bos=True)


def test_a_format_that_is_code_is_named(tmp_path: Path) -> None:
    """The converter writes the name of a template of llama.cpp's, which llama.cpp prints."""
    assert chat_remarks(tmp_path, {}) == ()
    (tmp_path / "tekken.json").write_text("{}")
    [said] = chat_remarks(tmp_path, {})
    assert "llama.cpp takes ChatML" in said
    assert chat_remarks(tmp_path, {"tokenizer.chat_template": CHATML}) == ()


@pytest.mark.parametrize(
    ("keys", "adds"),
    [
        ({"tokenizer.ggml.model": "llama"}, True),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_bos_token": False}, False),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"}, False),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe"}, True),
    ],
)
def test_who_adds_a_bos(keys: dict[str, Any], adds: bool, tmp_path: Path) -> None:
    keys |= {
        "tokenizer.chat_template": CHATML,
        "tokenizer.ggml.tokens": ["<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    assert ("no <s> and the tokenizer adds one" in "".join(chat_remarks(tmp_path, keys))) == adds


def test_the_template_for_tools_is_tried_with_tools() -> None:
    said = remarks(CHATML, tool_use="{{ tools | unique }}" + CHATML)
    assert "(tools, tools and a system message, a tool's result" in said
