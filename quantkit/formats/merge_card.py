"""The model card of a dense model made of a mixture's experts."""

from pathlib import Path
from typing import Any

import quantkit
from quantkit.checkpoint.folder import Checkpoint
from quantkit.families.model import Model

_KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag")


def write_merge_card(
    name: str, checkpoint: Checkpoint, model: Model, dense: Model, how: str
) -> str:
    """README.md: where the model comes from, and how.

    Args:
        name: of the dense model.
        checkpoint: the mixture's.
        model: the mixture.
        dense: what was made of it.
        how: a sentence that says what became of the experts.

    """
    import yaml

    repo = checkpoint.repo
    source = repo.repo_id if repo else checkpoint.path.resolve().name
    front: dict[str, Any] = {"base_model": [source], "base_model_relation": "merge"}
    front |= {key: value for key, value in _front_matter(checkpoint.path).items() if key in _KEPT}
    front |= {"library_name": "transformers", "tags": ["merge", "moe-to-dense"]}
    at = f" at commit `{repo.commit}`" if repo else ""
    experts = model.hparams.num_local_experts
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name}\n\n"
        f"A dense model of {dense.n_parameters:,} parameters, made of `{source}`{at}, a mixture of "
        f"{experts} experts with {model.n_parameters:,}. {how}\n\n"
        "Embeddings, attention, norms and the head are the mixture's, unchanged; its router is "
        f"gone. Made by quantkit {quantkit.__version__}, without training.\n"
    )


def _front_matter(folder: Path) -> dict[str, Any]:
    """What a model card says in its first lines; nothing where there is none or it is broken."""
    import yaml

    card = folder / "README.md"
    if not card.is_file():
        return {}
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        found = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
