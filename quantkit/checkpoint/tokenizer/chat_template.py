"""The chat templates of a checkpoint: one, or several by name."""

import string
from pathlib import Path
from typing import Any

from quantkit.checkpoint.folder import read_json
from quantkit.checkpoint.tokenizer.source import TokenizerSource, extra_templates
from quantkit.checkpoint.tokenizer.vocabulary import Metadata
from quantkit.core.errors import TokenizerError

_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits)


def template_metadata(source: TokenizerSource) -> Metadata:
    """The keys of the chat templates: those with names, the list of names, the default one."""
    templates = _named(source)
    default = templates.pop("default", "")
    metadata: Metadata = {f"tokenizer.chat_template.{k}": text for k, text in templates.items()}
    if templates:
        metadata["tokenizer.chat_templates"] = list(templates)
    metadata["tokenizer.chat_template"] = default
    return metadata


def _named(source: TokenizerSource) -> dict[str, str]:
    """Templates by name. Those in tokenizer_config.json win over those in files of their own."""
    settings = source.settings
    value = settings["chat_template"] if "chat_template" in settings else _from_files(source)
    if isinstance(value, str):
        return {"default": value}
    templates = {}
    for entry in value if isinstance(value, list) else []:
        if isinstance(entry, dict) and isinstance(text := entry.get("template"), str):
            name = str(entry.get("name", ""))
            templates["".join(c if c in _NAME_CHARACTERS else "_" for c in name)] = text
    templates.pop("", None)
    return templates


def _from_files(source: TokenizerSource) -> Any:
    path = source.folder / "chat_template.jinja"
    if path.is_file():
        entries = [{"name": "default", "template": _read(path)}]
        entries += [{"name": p.stem, "template": _read(p)} for p in extra_templates(source.folder)]
        return entries
    path = source.folder / "chat_template.json"
    return read_json(path).get("chat_template") if path.is_file() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read ({error}); download it again.") from error
