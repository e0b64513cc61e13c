"""What a model card says about a model in its front matter."""

from pathlib import Path
from typing import Any

_MOST_BYTES = 2**20


def read_front_matter(card: Path) -> dict[str, Any]:
    """The YAML at the top of a model card; nothing where there is none, or it is broken or huge."""
    import yaml
    from huggingface_hub import metadata_load

    if not card.is_file() or card.stat().st_size > _MOST_BYTES:
        return {}
    try:
        found = metadata_load(card)
    except (yaml.YAMLError, ValueError, RecursionError, OSError):
        return {}
    return found if isinstance(found, dict) else {}
