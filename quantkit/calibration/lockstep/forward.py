"""A model of any architecture, ready to be run over text with a layer's weights at a time."""

import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from quantkit.calibration.lockstep.model import (
    decoder_layers,
    empty_model,
    require_transformers,
)
from quantkit.calibration.lockstep.own_experts import find_experts
from quantkit.calibration.lockstep.parameters import Parameters, stored_names
from quantkit.calibration.settings import Settings, find_device
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.core.errors import CalibrationError


class LockstepForward:
    """A model that transformers knows, without its weights, and where those are.

    ``layers`` are the names of its decoder layers, ``parts`` the modules of each, ``experts`` what
    stands in for modules of experts, one matrix at a time, and ``tables`` the embeddings within
    layers, of which rows are read when they are asked for.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        """Find the model's class and layers, and where its weights are. Reads none.

        Args:
            checkpoint: with its tensors as they are stored.
            device: where the model is run.

        Raises:
            CalibrationError: transformers has no such model.
            CheckpointError: the checkpoint's tensors are not that model's.

        """
        require_transformers()
        self.device = device
        self.model = empty_model(checkpoint.config, device)
        self.parameters = Parameters(checkpoint, self.model, device)
        self.modules: Mapping[str, nn.Module] = dict(self.model.named_modules())
        self.layers = tuple(decoder_layers(self.model))
        self.parts = {
            layer: {
                name: module
                for name, module in self.modules.items()
                if name == layer or name.startswith(f"{layer}.")
            }
            for layer in self.layers
        }
        self.experts = {
            name: some
            for parts in self.parts.values()
            for name, some in find_experts(parts).items()
        }
        self._stacked = {
            f"{name}.{own}": count
            for name, some in self.experts.items()
            for own, count in some.matrices.items()
        }
        self.tables = {
            name: module
            for parts in self.parts.values()
            for name, module in parts.items()
            if isinstance(module, nn.Embedding)
        }
        for parts in self.parts.values():
            self.parameters.require(stored_names(parts))

        wanted = inspect.signature(self.model.forward).parameters
        self.keeps_last = "logits_to_keep" in wanted

    def scores(self, ids: Tensor, last: int) -> Tensor:
        """Logits after the last of some tokens, shape (1, last, vocabulary).

        Where the class can score only some (``keeps_last``), it scores no others.
        """
        some = {"logits_to_keep": last} if self.keeps_last else {}
        logits: Tensor = self.model(input_ids=ids, use_cache=False, **some).logits
        return logits[:, -last:]

    @property
    def n_parameters(self) -> int:
        """Weights of the model, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def n_matrices(self, parameter: str) -> int:
        """How many matrices a parameter holds: one per expert, or one."""
        shape = self.parameters.shape(parameter)
        return self._stacked.get(parameter) or (shape[0] if len(shape) > 2 else 1)

    def expert(self, parameter: str, expert: int) -> Tensor:
        """One matrix of a parameter that holds several.

        Raises:
            CheckpointError: it is missing, or cannot be read.

        """
        return self.parameters.part(parameter, expert, self.n_matrices(parameter))

    @property
    def widest(self) -> int:
        """The most columns of a linear layer beside the experts': how wide its inputs are."""
        return max(
            (self.parameters.shape(p)[1] for p in self.linears - self._stacked.keys()), default=0
        )

    @cached_property
    def linears(self) -> frozenset[str]:
        """The parameters of the layers' linear layers, experts' among them; not of routers."""
        found = set(self._stacked)
        for parts in self.parts.values():
            counts = {self.experts[name].count for name in parts.keys() & self.experts.keys()}
            for name, module in parts.items():
                if isinstance(module, nn.Linear) and module.out_features not in counts:
                    found.add(f"{name}.weight")
        return frozenset(found)

    def state_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of the hidden states of so many chunks and tokens."""
        return prod(shape) * int(self.model.config.get_text_config().hidden_size) * 4

    def dense(self, layer: str) -> list[str]:
        """The parameters that are loaded with a layer: all but matrices of experts, and tables."""
        later = self._stacked.keys() | {f"{name}.weight" for name in self.tables}
        return [name for name in stored_names(self.parts[layer]) if name not in later]

    def require_context(self, context: int) -> None:
        """Refuse more tokens at once than the model was made for.

        Raises:
            CalibrationError: they are.

        """
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(most, int) and context > most:
            raise CalibrationError(
                f"--context {context} is more than the {most} tokens that config.json gives the "
                "model; choose a smaller one."
            )


def stand_ready(stored: Checkpoint, context: int, settings: Settings) -> LockstepForward:
    """What is to be run; refuses a checkpoint that cannot be.

    Raises:
        CalibrationError, CheckpointError: as `LockstepForward` does, or the context is too long.

    """
    forward = LockstepForward(stored, find_device(settings.device))
    forward.require_context(context)
    return forward


def read_rows_of(forward: LockstepForward, name: str) -> Callable[[], None]:
    """Have an embedding within a layer read by the rows that are asked for; the result ends it."""
    module = forward.tables[name]

    def rows(index: Tensor) -> Tensor:
        used = np.unique(index.cpu().numpy())
        return embedding(index, forward.parameters.table(f"{name}.weight", used))

    module.forward = rows
    return lambda: delattr(module, "forward")
