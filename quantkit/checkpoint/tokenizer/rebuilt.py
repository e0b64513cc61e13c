"""``tokenizer.json`` as transformers 5 rebuilds it for some classes.

For the model type llama, LlamaTokenizer and CodeLlamaTokenizer take vocabulary, merges and added
tokens from the file and say the rest themselves; mistral and mixtral have the file as it is.
Sources: ``AutoTokenizer.from_pretrained``, ``TokenizersBackend.convert_to_native_format``,
``LlamaTokenizer`` and ``CodeLlamaTokenizer`` of transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.checkpoint.tokenizer.vocabulary import WORD_BOUNDARY, token_text

_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer")


def rebuild(
    fast: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What stands for a tokenizer.json in transformers 5, None where it is the file itself.

    Args:
        fast: tokenizer.json.
        settings: tokenizer_config.json.
        config: config.json.

    """
    name = class_name(fast, settings, config)
    model = fast["model"]
    if name not in _CLASSES or model.get("type", "BPE") != "BPE" or _is_byte_level(fast):
        return None
    wanted = settings.get("add_prefix_space")
    always = name == "LlamaTokenizer" and settings.get("legacy", False)
    scheme = "always" if always else "first"
    unknown = token_text(settings.get("unk_token", "<unk>"))
    return {
        **fast,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": WORD_BOUNDARY,
            "prepend_scheme": scheme if wanted is None or wanted else "never",
            "split": False,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if name == "LlamaTokenizer" else unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": model.get("vocab"),
            "merges": model.get("merges") or [],
        },
    }


def class_name(
    fast: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any]
) -> str:
    """The tokenizer class that AutoTokenizer takes, empty for the one that adds nothing of its own.

    Args:
        fast: tokenizer.json, empty where there is none.
        settings: tokenizer_config.json.
        config: config.json.

    """
    if config.get("model_type") != "llama":
        return ""
    name = settings.get("tokenizer_class") or config.get("tokenizer_class") or ""
    name = str(name).removesuffix("Fast")
    return "" if name == "LlamaTokenizer" and _is_byte_level(fast) else name


def _is_byte_level(fast: Mapping[str, Any]) -> bool:
    """Whether a step maps bytes to letters: then the file counts after all."""
    parts = [fast.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
    return "'ByteLevel'" in repr(parts)
