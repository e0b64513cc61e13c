"""One checkpoint computed twice: by transformers, and by llama.cpp from the GGUF that is built."""

import json
import pickle
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from quantkit.building import engine
from quantkit.building.work import Work, prepare
from quantkit.families import find_family
from quantkit.planning.quants import find_quants
from tests.random_checkpoints import VOCABULARY, config_of, write_tokenizer
from tests.safetensors_writer import write_checkpoint

SMALL: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}
LIMIT = 2e-3  # how far logits may be apart
_N_CTX = 256  # llama.cpp rounds up to that


def small_config(family: str, **changes: Any) -> dict[str, Any]:
    """A config of one small layer; None removes an entry."""
    small = dict(SMALL)
    if family != "mixtral":
        del small["num_local_experts"]
    return config_of(family, **{**small, **changes})


def small_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Any]:
    """Weights large enough that attention attends to something, and logits are a few units."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name in sorted(shapes):
        shape = shapes[name]
        values = rng.standard_normal(shape, np.float32)
        scale = 1.6 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.3
        values *= np.float32(scale)
        tensors[name] = values + 1 if name.endswith("norm.weight") else values
    return tensors


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """A checkpoint folder."""
    write_checkpoint(folder, tensors, config)
    write_tokenizer(folder)


def shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that quantkit expects for a config."""
    return dict(find_family(config).describe(config, ()).sources)


def tokens_of(count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(5).integers(3, VOCABULARY, count)]


def original_logits(folder: Path, tokens: list[int]) -> NDArray[np.float32]:
    """What transformers computes, in float32: shape (tokens, vocabulary)."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # they are about odd configs
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, local_files_only=True
        ).eval()
        logits: NDArray[np.float32] = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return np.asarray(logits, np.float32)


def build_f32(folder: Path, out: Path) -> tuple[Work, Path]:
    """The f32 GGUF of a checkpoint, without a smoke test."""
    work = prepare(folder, find_quants(["f32"]))
    [artifact] = engine.build(work, out, jobs=1, max_memory=2**28)
    return work, artifact.path


class LlamaError(Exception):
    """llama.cpp refused a file, or ended its process over it."""


@dataclass
class Llama:
    """llama.cpp in a process that takes file after file, and may die of one."""

    _process: "subprocess.Popen[bytes] | None" = field(default=None)

    def logits(self, file: Path, tokens: list[int], n_ctx: int = _N_CTX) -> NDArray[np.float32]:
        """The logits after each token: shape (tokens, vocabulary).

        Raises:
            LlamaError: it refuses the file or crashes.

        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _send(self._process.stdin, (file, tokens, n_ctx))
        try:
            result = _receive(self._process.stdout)
        except EOFError:
            code, self._process = self._process.wait(), None
            raise LlamaError(f"llama.cpp ended its process with status {code}") from None
        if isinstance(result, str):
            raise LlamaError(result)
        return np.asarray(result, np.float32)

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()


@contextmanager
def llama() -> Iterator[Llama]:
    worker = Llama()
    try:
        yield worker
    finally:
        worker.close()


def _send(pipe: IO[bytes], value: object) -> None:
    data = pickle.dumps(value)
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    (size,) = struct.unpack("<Q", head)
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)  # noqa: S301 - from our own process


def _serve() -> None:
    from quantkit.core.errors import QuantkitError
    from quantkit.verification.bindings import LlamaModel

    while True:
        try:
            file, tokens, n_ctx = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            model = LlamaModel(
                file,
                extra_buffers=False,
                threads=1,
                n_ctx=n_ctx,
                n_batch=n_ctx,
                full_precision=True,
            )
            result: object = model.evaluate(tokens)
        except QuantkitError as error:
            result = str(error)
        _send(sys.stdout.buffer, result)


def largest(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """The largest difference of any logit; infinite where one of them is not a number."""
    difference = np.abs(ours - theirs)
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")


def edit_config(folder: Path, **changes: Any) -> None:
    """Change entries of config.json; here None is null."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


if __name__ == "__main__":
    _serve()
