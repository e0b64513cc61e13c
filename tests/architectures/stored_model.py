"""What is to be said of a checkpoint in the form in which it is published."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.architectures.small import Config, Small


@dataclass(frozen=True)
class Stored:
    """A checkpoint to make.

    Attributes:
        small: what it is of. All of `Small` holds, but ``quantization`` is not said there.
        like: a published checkpoint of this form.
        quantization: ``quantization_config`` of config.json; says how weights are stored.
        older_quantization: the same for ModelOpt's checkpoints that have hf_quant_config.json only.
        files: further files, and entries of JSON files that are to differ, by name.
        removed: files that the published one has not.
        tokens: those of tokenizer.json that are to be others.
        renamed: a part of every tensor's name, and what is published for it.
        n_pickles: how many pytorch_model*.bin hold the weights; 0 where a safetensors file does.
        projector: whether the converter writes one with ``--mmproj``.
        refused: what the converter says where it cannot convert the model.

    """

    small: Small
    like: str
    quantization: Config = field(default_factory=dict)
    older_quantization: Config = field(default_factory=dict)
    files: Mapping[str, Config | str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    tokens: Mapping[str, str] = field(default_factory=dict)
    renamed: tuple[str, str] = ("", "")
    n_pickles: int = 0
    projector: bool = False
    refused: str | None = None

    @property
    def arch(self) -> str:
        """What the converter calls it in ``general.architecture``."""
        return self.small.arch

    @property
    def options(self) -> tuple[str, ...]:
        """The converter's."""
        return self.small.options
