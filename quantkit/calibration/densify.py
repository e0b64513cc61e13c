"""Dense models made of a mixture by what its experts do on a text.

``routed`` is a mean by weights: how often and how strongly the router picked each expert, a layer
at a time, while the mixture itself ran. ``fit`` makes new matrices: of all experts' neurons in a
layer those that gave most to its output are taken, and fitted by least squares to what the layer's
experts together made of their inputs. Those come from the layers before, which are dense already,
so each layer is fitted where it will stand.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from quantkit.building.output import check_space, working_folder
from quantkit.calibration.journaled import Run
from quantkit.calibration.least_squares import ExpertPart, Samples, fit
from quantkit.calibration.lockstep.dispatch import Rows
from quantkit.calibration.lockstep.forward import LockstepForward
from quantkit.calibration.lockstep.squares import Squares
from quantkit.calibration.lockstep.visitors import Visitors
from quantkit.calibration.lockstep.watching import require_finite
from quantkit.calibration.routing import Routing
from quantkit.calibration.settings import Settings, Step, digest, identify
from quantkit.calibration.sums import require_same, write_parts
from quantkit.calibration.text import Corpus
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.densified import densified, require_experts
from quantkit.checkpoint.safetensors import read_header
from quantkit.core.tensors import SourceTensor
from quantkit.encodings.merge import narrow
from quantkit.encodings.widen import widen
from quantkit.families.model import Decoder
from quantkit.formats.safetensors import StoredTensor, place

_NAMES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


@dataclass(frozen=True, slots=True)
class Merged:
    """A dense model that reads what it is made of, and what that was made from."""

    checkpoint: Checkpoint
    model: Decoder
    identity: str
    routing: tuple[Routing, ...]


@contextmanager
def merged(
    checkpoint: Checkpoint,
    model: Decoder,
    corpus: Corpus,
    settings: Settings,
    folder: Path,
    *,
    rounds: int | None,
    beside: int = 0,
    report: Callable[[Step], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Merged]:
    """Merge experts by what they do on a text; the result can be read inside the ``with`` block.

    In ``folder`` grows what a killed run resumes from; it is gone after the block.

    Args:
        checkpoint: of a Mixtral.
        model: the checkpoint's.
        corpus: the text.
        settings: how to run; no expert borrows tokens.
        folder: for unfinished work.
        rounds: of alternating least squares, 0 for the down matrices alone; None for ``routed``.
        beside: bytes that the block writes to the same disk, on which all of it must find room.
        report: called with the progress.
        say: told what of an interrupted run is lost.

    Raises:
        CheckpointError: the model has no experts, or a weight cannot be read or changed meanwhile.
        CalibrationError: the model cannot be run over this text.
        OutputError: the folder cannot be written.
        NoSpaceError: the disk has no room for it and what the block writes.
        Interrupted: Ctrl-C; what was done is kept.

    """
    require_experts(checkpoint, model)
    settings = replace(settings, fewest_tokens=0)
    identity = {**identify(checkpoint, corpus, settings), "merge": rounds}
    fits = rounds is not None
    run = Run(
        checkpoint,
        corpus,
        settings,
        folder,
        identity,
        more_arrays=int(fits),
        more_bytes=_written(model) if fits else 0,
    )
    experts, layers = model.hparams.num_local_experts, model.hparams.num_hidden_layers
    check_space(folder, run.n_bytes + beside)
    with working_folder(folder, run.n_bytes):
        if rounds is None:
            run.execute(Visitors(), lambda _: {}, report, say)
            strengths = [layer.squares for layer in run.routing.values()]
            parts = densified(checkpoint, model, strengths)
        else:
            squares = Squares(run.forward.n_matrices)
            fitted = _Fit(run.forward, checkpoint, squares, rounds, folder)
            visitors = Visitors(watcher=squares, merger=fitted)
            run.execute(visitors, lambda _: fitted.written, report, say)
            replaced: dict[str, SourceTensor] = {}
            for layer, crcs in enumerate(run.records):
                path = _file(folder, layer)
                if layer < run.resumed:  # what this run wrote itself need not be read again
                    require_same(path, crcs.get(path.name))
                replaced |= read_header(path)
            parts = densified(checkpoint, model, [[1.0] * experts] * layers, replaced)
        run.require_unchanged()
        yield Merged(*parts, digest(identity), tuple(run.routing.values()))


def _written(model: Decoder) -> int:
    """Bytes of the matrices that a fit writes in all, if they were float32."""
    hparams = model.hparams
    return hparams.num_hidden_layers * 3 * hparams.hidden_size * hparams.intermediate_size * 4


class _Fit:
    """A `Merger`: neurons are chosen, fitted, rounded as they will be stored, and written."""

    def __init__(
        self,
        forward: LockstepForward,
        checkpoint: Checkpoint,
        squares: Squares,
        rounds: int,
        folder: Path,
    ) -> None:
        self._forward = forward
        self._checkpoint = checkpoint
        self._squares = squares
        self._rounds = rounds
        self._folder = folder
        self.written: dict[str, int] = {}
        """The CRC-32 of the latest layer's file, by name."""

    def __call__(
        self, layer: int, inputs: Rows, outputs: Tensor, routing: Routing
    ) -> Callable[[Tensor], Tensor]:
        require_finite(outputs, f"the experts of layer {layer}")
        samples = Samples(inputs, outputs, self._forward.device)
        part = fit(samples, self._choose(layer, routing), self._rounds)
        return self._store(layer, part)

    def _choose(self, layer: int, routing: Routing) -> ExpertPart:
        """As many neurons of all experts as one has, those with the most energy in the output.

        A neuron's is the sum of its squared activations where the router sent tokens, by the
        expert's mean squared gate and the squared length of its column in ``down``.
        """
        name = self._experts_of(layer)
        seen = self._squares.take()[f"{name}.down_proj"]
        squares = torch.from_numpy(seen.squares)
        experts, neurons = squares.shape
        energies = []

        def read(parameter: str, expert: int) -> Tensor:
            return self._forward.expert(f"{name}.{parameter}", expert)

        for expert in range(experts):
            lengths = read("down_proj", expert).square().sum(0).cpu()
            strength = routing.squares[expert] / max(routing.tokens[expert], 1)
            energies.append(squares[expert] * lengths * strength)
        chosen = torch.stack(energies).view(-1).topk(neurons).indices.sort().values
        owner, number = chosen // neurons, (chosen % neurons).to(self._forward.device)
        gates, ups, downs = [], [], []
        for expert in range(experts):
            own = number[(owner == expert).to(number.device)]
            gate, up = read("gate_up_proj", expert).chunk(2)
            gates.append(gate[own])
            ups.append(up[own])
            del gate, up
            downs.append(read("down_proj", expert)[:, own])
        return ExpertPart(torch.cat(gates), torch.cat(ups), torch.cat(downs, 1))

    def _experts_of(self, layer: int) -> str:
        """The name of a layer's module of experts."""
        forward = self._forward
        names: set[str] = forward.parts[forward.layers[layer]].keys() & forward.experts.keys()
        (name,) = names
        return name

    def _store(self, layer: int, part: ExpertPart) -> ExpertPart:
        """Write a layer's matrices in the experts' dtype; the part as it was rounded."""
        name = self._experts_of(layer)
        origin = self._forward.parameters.origins[f"{name}.gate_up_proj"]
        dtype = self._checkpoint.tensors[origin.stored[0]].dtype
        raws: dict[str, bytes] = {}
        rounded: dict[str, Tensor] = {}
        tensors = []
        for short, name in _NAMES.items():
            values: Tensor = getattr(part, short)
            full = f"model.layers.{layer}.mlp.{name}.weight"
            raw = narrow(values.cpu().contiguous().view(-1).numpy(), dtype)
            raws[full] = raw.tobytes()
            tensors.append(StoredTensor(full, dtype, tuple(values.shape)))
            wide = torch.from_numpy(widen(raw, dtype)).view(values.shape)
            rounded[short] = wide.to(self._forward.device)
        shard = place(_file(self._folder, layer).name, tensors)
        path = _file(self._folder, layer)
        parts = (shard.header, *(raws[tensor.name] for tensor in shard.tensors))
        self.written = {path.name: write_parts(path, parts)}
        return ExpertPart(**rounded)


def _file(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer}.safetensors"
