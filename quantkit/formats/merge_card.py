"""The model card of a dense model made of a mixture's experts."""

from typing import Any

from quantkit.checkpoint.card import read_front_matter
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.core.version import __version__
from quantkit.families.model import Decoder

_KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag")


def write_merge_card(
    name: str, checkpoint: Checkpoint, model: Decoder, dense: Decoder, how: str
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
    source = repo.repo_id if repo else checkpoint.name
    front: dict[str, Any] = {"base_model": [source], "base_model_relation": "merge"}
    front |= {
        key: value
        for key, value in read_front_matter(checkpoint.path / "README.md").items()
        if key in _KEPT
    }
    front |= {"library_name": "transformers", "tags": ["merge", "moe-to-dense"]}
    at = f" at commit `{repo.commit}`" if repo else ""
    experts = model.hparams.num_local_experts
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name}\n\n"
        f"A dense model of {dense.n_parameters:,} parameters, made of `{source}`{at}, a mixture of "
        f"{experts} experts with {model.n_parameters:,}. {how}\n\n"
        "Embeddings, attention, norms and the head are the mixture's, unchanged; its router is "
        f"gone. Made by quantkit {__version__}, without training.\n"
    )
