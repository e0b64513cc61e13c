"""Which programs load a folder that was built, in one sentence: what docs/gptq.md has tried."""

from collections.abc import Mapping
from typing import Any

# By the kind of a model: what reads its GPTQ folder beside our own `load` and `export`, and what
# does not. tests/readers has tried it.
_WITH_TRANSFORMERS = "GPTQModel, and transformers 5 with GPTQModel"
_READ = {
    "llama": f"{_WITH_TRANSFORMERS}, auto-gptq, and llama.cpp's converter (2, 4 and 8 bits)",
    "mistral": "auto-gptq and llama.cpp's converter (2, 4 and 8 bits)",
    "mixtral": "auto-gptq and llama.cpp's converter (2, 4 and 8 bits)",
    "gemma3_text": _WITH_TRANSFORMERS,
    "qwen3_moe": "GPTQModel",
}
_REFUSED = {
    "mixtral": "GPTQModel refuses it, because it wants the experts under other names than these",
    "glm4_moe": "GPTQModel 7.7 fails at the first token of any GLM-4-MoE",
}
_RANDOM = (
    "do not load it with transformers 5 and GPTQModel, which give the experts random numbers "
    "without an error"
)


def who_reads(name: str, quant_format: str, entry: Mapping[str, Any]) -> str:
    """Who loads an artifact in a folder, and who must not.

    Args:
        name: of the artifact.
        quant_format: ``bnb`` or ``gptq``.
        entry: its entry in the manifest.

    """
    kind = str(entry["source"].get("family")).lower()
    is_mixture = bool(entry.get("experts"))
    if quant_format == "bnb":
        if not is_mixture:
            return f"{name} loads in transformers with from_pretrained."
        older = "; transformers 4 loads it with from_pretrained" if kind == "mixtral" else ""
        return (
            f"{name} loads in transformers 5 with quantkit.formats.bnb.load, because "
            f"from_pretrained there quantizes no experts{older}."
        )
    read = f"{name} is read by quantkit.formats.gptq.load and quantkit export"
    settings = entry.get("quantization_config") or {}
    others = _READ.get(kind) if settings.get("sym", True) else None
    said = [f"{read}, by {others}" if others else f"{read}; no other reader has been tried"]
    if kind in _REFUSED:
        said = [f"{read}, by {others}" if others else read, _REFUSED[kind]]
    if is_mixture:
        said.append(_RANDOM)
    return "; ".join(said) + "."
