"""What a model card says about a model in its front matter."""

from pathlib import Path
from typing import Any

from quantkit.core.documents import parse_yaml
from quantkit.core.errors import CheckpointError
from quantkit.core.files import read_if_there

_MOST_BYTES = 16 * 10**6
_FENCE = "---"
_MEND = "correct or remove it"


def read_front_matter(card: Path) -> dict[str, Any]:
    """The YAML at the top of a model card; nothing where there is none.

    It is cut out and mended as gguf-py's ``Metadata.load_model_card`` does, which reads ``no`` in a
    list as Norwegian and a tab as two spaces.

    Raises:
        CheckpointError: the card cannot be read, or its front matter is not plain YAML.

    """
    raw = read_if_there(card, most=_MOST_BYTES, error=CheckpointError, fix=_MEND)
    try:
        lines = (raw or b"").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise CheckpointError(f"The model card {card} is not UTF-8; {_MEND}.") from None
    if not lines or lines[0] != _FENCE:
        return {}
    end = lines.index(_FENCE, 1) if _FENCE in lines[1:] else len(lines)
    text = "".join(f"{line}\n" for line in lines[1:end])
    text = text.replace("- no\n", '- "no"\n').replace("\t", "  ")
    found = parse_yaml(text.encode(), f"The model card {card}", error=CheckpointError, fix=_MEND)
    return found if isinstance(found, dict) else {}
