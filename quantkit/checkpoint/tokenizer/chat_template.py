"""The chat templates of a checkpoint: one, or several by name."""

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.checkpoint.chat.rendering import template_remarks
from quantkit.checkpoint.folder import read_json
from quantkit.checkpoint.tokenizer.source import (
    TokenizerSource,
    extra_templates,
    has_tokenizer_file,
)
from quantkit.checkpoint.tokenizer.vocabulary import (
    SPECIAL_KINDS,
    Metadata,
    assumes_bos,
    token_text,
)
from quantkit.core.errors import TokenizerError
from quantkit.core.files import read_file, with_plain_line_ends

_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits)

_NO_TEMPLATE = (
    "The checkpoint has no chat template, because its format is code in mistral-common; in a chat "
    "llama.cpp takes ChatML, which is not what the model was trained with. Give it a template with "
    "--chat-template-file."
)


def template_metadata(source: TokenizerSource) -> Metadata:
    """The keys of the chat templates: those with names, the list of names, the default one."""
    templates = _named(source)
    default = templates.pop("default", "")
    metadata: Metadata = {f"tokenizer.chat_template.{k}": text for k, text in templates.items()}
    if templates:
        metadata["tokenizer.chat_templates"] = list(templates)
    metadata["tokenizer.chat_template"] = default
    return metadata


def chat_remarks(folder: Path, keys: Mapping[str, Any]) -> tuple[str, ...]:
    """What llama.cpp renders otherwise than transformers, of a GGUF with these keys.

    Args:
        folder: the checkpoint, for the special tokens that transformers hands to a template.
        keys: the ``tokenizer.*`` keys with their values.

    """
    prefix = "tokenizer.chat_template"
    if prefix not in keys and has_tokenizer_file(folder / "tekken.json"):
        return (_NO_TEMPLATE,)
    names = {"default": prefix} | {n: f"{prefix}.{n}" for n in keys.get(f"{prefix}s", ())}
    special = named_tokens(keys)
    return template_remarks(
        {name: str(keys[key]) for name, key in names.items() if key in keys},
        special | special_tokens(folder),
        special,
        adds_bos=bool(keys.get("tokenizer.ggml.add_bos_token", assumes_bos(keys))),
    )


def named_tokens(keys: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a GGUF's keys name: ``bos_token`` and ``eos_token``."""
    tokens = keys.get("tokenizer.ggml.tokens", ())
    special = {}
    for kind in ("bos", "eos"):
        token_id = keys.get(f"tokenizer.ggml.{kind}_token_id")
        if isinstance(token_id, int) and token_id < len(tokens):
            special[f"{kind}_token"] = str(tokens[token_id])
    return special


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that a checkpoint's settings name: ``bos_token`` and so on.

    Raises:
        CheckpointError: a file is not JSON.

    """
    found = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings = read_json(folder / name) if has_tokenizer_file(folder / name) else {}
        for kind in SPECIAL_KINDS:
            token = token_text(settings.get(f"{kind}_token"))
            if isinstance(token, str):
                found[f"{kind}_token"] = token
    return found


def _named(source: TokenizerSource) -> dict[str, str]:
    """Templates by name, as transformers takes them: those in files of their own win.

    ``chat_template.json``, which it reads for processors only, counts where there is nothing else.
    """
    settings = source.settings
    value: Any = _from_files(source.folder)
    if not value:
        value = settings["chat_template"] if "chat_template" in settings else _legacy(source.folder)
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    templates = {}
    for entry in value if isinstance(value, list) else []:
        if isinstance(entry, dict) and isinstance(text := entry.get("template"), str):
            name = str(entry.get("name", ""))
            templates["".join(c if c in _NAME_CHARACTERS else "_" for c in name)] = text
    templates.pop("", None)
    return templates


def _from_files(folder: Path) -> dict[str, str]:
    path = folder / "chat_template.jinja"
    default = {"default": _read(path)} if has_tokenizer_file(path) else {}
    return default | {extra.stem: _read(extra) for extra in extra_templates(folder)}


def _legacy(folder: Path) -> Any:
    path = folder / "chat_template.json"
    return read_json(path).get("chat_template") if has_tokenizer_file(path) else None


def _read(path: Path) -> str:
    try:
        text = read_file(path, error=TokenizerError).decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} cannot be read ({error}); download it again.") from error
    return with_plain_line_ends(text)  # as transformers reads it
