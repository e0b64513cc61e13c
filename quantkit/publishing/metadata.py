"""What a model's card, or the header of its GGUF, says of it.

All of it was written by the model's author: what does not have the expected form is left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.checkpoint.names import is_repo_id, without_address

_LONGEST_ID = 200
_WORD = re.compile(r"[\w./:@+ -]{1,100}")
_URL = re.compile(r"https?://[\w./%?=&#~:+-]{1,300}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """The model that was quantized; what is not known is None or empty.

    ``repo_id`` is where on the Hub its weights were read, or could have been; ``base_model`` what
    the model is called there, if that is another name: of a GGUF, the checkpoint that it was made
    of. ``verified`` says that the Hub lists weights at this commit with the sha256 that the build
    read. ``files`` are those of a GGUF, as they lie in the repository or were called here.
    """

    repo_id: str | None = None
    base_model: str | None = None
    commit: str | None = None
    verified: bool = False
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    license_text: bytes | None = None
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    chat_template: str | None = None
    special_tokens: tuple[tuple[str, str], ...] = ()
    files: tuple[str, ...] = ()

    @property
    def original(self) -> str | None:
        """The Hub's name of the model that all of this was made from."""
        return self.base_model or self.repo_id


def of_card(card: Mapping[str, Any]) -> SourceFacts:
    """What the front matter of a model card says."""
    return SourceFacts(
        license=_word(card.get("license")),
        license_name=_word(card.get("license_name")),
        license_link=_link(card.get("license_link")),
        languages=_words(card.get("language")),
        tags=_words(card.get("tags")),
        datasets=_words(card.get("datasets")),
        pipeline_tag=_word(card.get("pipeline_tag")),
    )


def of_metadata(metadata: Mapping[str, Any]) -> SourceFacts:
    """What the keys of a GGUF say of the model in it."""
    template = metadata.get("tokenizer.chat_template")
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    special = {}
    for kind in ("bos", "eos"):
        index = metadata.get(f"tokenizer.ggml.{kind}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            special[f"{kind}_token"] = str(tokens[index])
    tags = _words(metadata.get("general.tags"))
    # gguf-py puts the pipeline's tag among the others.
    pipeline = next((tag for tag in tags if tag == "text-generation"), None)
    return SourceFacts(
        base_model=_own_name(metadata),
        license=_word(metadata.get("general.license")),
        license_name=_word(metadata.get("general.license.name")),
        license_link=_link(metadata.get("general.license.link")),
        languages=_words(metadata.get("general.languages")),
        tags=tuple(tag for tag in tags if tag != pipeline),
        pipeline_tag=pipeline,
        chat_template=template if isinstance(template, str) and template else None,
        special_tokens=tuple(special.items()),
    )


def base_of_card(card: Mapping[str, Any]) -> str | None:
    """The one model that a card says its repository was made from."""
    named = card.get("base_model")
    names = named if isinstance(named, list) else [named]
    return names[0] if len(names) == 1 and _is_id(names[0]) else None


def _own_name(metadata: Mapping[str, Any]) -> str | None:
    """The Hub's name of the model in a GGUF.

    The converter's ``base_model`` is what the model was trained from. Only where that has the
    model's own name, it is the model itself: a copy of it was converted.
    """
    for key in ("general.source.huggingface.repository", "general.source.repo_url"):
        if name := _hub_id(metadata.get(key)):
            return name
    if metadata.get("general.base_model.count") != 1:
        return None
    base, own = (metadata.get(f"general.{key}") for key in ("base_model.0.name", "name"))
    if not (isinstance(base, str) and isinstance(own, str)) or _bare(base) != _bare(own):
        return None
    return _hub_id(metadata.get("general.base_model.0.repo_url"))


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _hub_id(value: Any) -> str | None:
    """A repository's name or address as its name."""
    name = without_address(value) if isinstance(value, str) else None
    return name if _is_id(name) else None


def _is_id(value: Any) -> bool:
    parts = value.split("/") if isinstance(value, str) and len(value) <= _LONGEST_ID else []
    return len(parts) == 2 and is_repo_id(value) and all(part[0] not in ".-" for part in parts)


def _word(value: Any) -> str | None:
    """A short plain text, else None."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def _words(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(word for v in values if (word := _word(v))))


def _link(value: Any) -> str | None:
    return value if isinstance(value, str) and _URL.fullmatch(value) else None
