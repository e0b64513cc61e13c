"""The lazy stand-ins against what they stand for: ``python -P lazily_apart.py TREE PACKAGES``.

Runs as the converter's process does: with its gguf and its transformers before all others.
"""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TREE, PACKAGES, ROOT = sys.argv[1:]
sys.path[:0] = [TREE, f"{TREE}/gguf-py", PACKAGES, ROOT]
sys.modules["mistral_common"] = None  # type: ignore[assignment]

import gguf  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from conversion import maple, minimax, qwen4exp  # noqa: E402
from conversion.base import LazyTorchTensor  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from quantkit.checkpoint.converter import lazily  # noqa: E402
from quantkit.checkpoint.converter.expressions import evaluate, matrix_of, reads  # noqa: E402
from quantkit.checkpoint.converter.nodes import Leaf, Rows, shape_of, whole  # noqa: E402

N_VOCAB = 6
GENERATOR = torch.Generator().manual_seed(5)


class Stored:
    """Tensors of a checkpoint, and what was read of them."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.values = tensors
        self.tensors = {n: (str(t.dtype), tuple(t.shape)) for n, t in tensors.items()}
        self.read_rows: list[tuple[str, int, int]] = []

    def read(self, name: str, first: int, count: int, *, bounded: bool = True) -> torch.Tensor:
        del bounded
        self.read_rows.append((name, first, count))
        return self.values[name][first : first + count].clone()

    def lazy(self, name: str) -> Any:
        tensor = self.values[name]
        meta = LazyTorchTensor.meta_with_dtype_and_shape(tensor.dtype, tuple(tensor.shape))
        leaf = Leaf(name, tuple(tensor.shape), self.read)
        return LazyTorchTensor(meta=meta, args=(leaf,), func=Leaf.load)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


def itself(value: Any) -> Any:
    return value


def check_maple() -> None:
    stored = Stored({f"e{i}": random(4, 8).to(torch.bfloat16) for i in range(3)})
    theirs = LazyTorchTensor.to_eager(
        maple.MapleModel._stack_experts([stored.lazy(f"e{i}") for i in range(3)])
    )
    ours = lazily.stack_experts([stored.lazy(f"e{i}") for i in range(3)])
    assert torch.equal(evaluate(whole(ours)), theirs)
    found = matrix_of(ours, 1)
    assert found is not None
    assert {part.node._args[0].name for part in reads(Rows(found[0], 0, 4))} == {"e1"}


def check_qwen4exp() -> None:
    stored = Stored({f"t.shard_{i}": random(3 + i, 8).to(torch.bfloat16) for i in range(3)})
    model = SimpleNamespace(model_tensors={n: lambda n=n: stored.lazy(n) for n in stored.tensors})

    def chunks(evaluates: bool) -> list[Any]:
        load = qwen4exp.Qwen4ExpTextModel._load_ple_shard
        real = LazyTorchTensor.to_eager
        if not evaluates:  # as it is while a model is described
            LazyTorchTensor.to_eager = staticmethod(itself)
        try:
            return [load(model, name)() for name in stored.tensors]
        finally:
            LazyTorchTensor.to_eager = real

    theirs = np.concatenate(chunks(evaluates=True))
    stored.read_rows.clear()
    lazy = chunks(evaluates=False)
    givers: list[Any] = [partial(lambda chunk: chunk, chunk) for chunk in lazy]
    ours = lazily.Chunked(givers, theirs.shape, theirs.dtype)
    assert stored.read_rows == []
    assert shape_of(ours) == theirs.shape
    assert np.array_equal(evaluate(whole(ours)).numpy(), theirs)
    assert {p.node._args[0].name for p in reads(Rows(ours, 4, 6))} == {"t.shard_1"}


def check_minimax() -> None:
    embeddings = random(N_VOCAB + 5, 8).to(torch.bfloat16)
    embeddings[[1, N_VOCAB, N_VOCAB + 3]] = 0
    name = "model.embed_tokens.weight"
    stored = Stored({name: embeddings})
    suppress = lazily._zero_tokens(stored)
    with tempfile.TemporaryDirectory() as folder:
        save_file({name: embeddings}, f"{folder}/a.safetensors")
        index = {"weight_map": {name: "a.safetensors"}}
        Path(folder, "model.safetensors.index.json").write_text(json.dumps(index))
        model = SimpleNamespace(dir_model=Path(folder))
        transformers.AutoTokenizer.from_pretrained = lambda *_, **__: SimpleNamespace(
            vocab_size=N_VOCAB
        )
        theirs = minimax.MiniMaxText01Model._get_suppress_tokens(model)
        assert theirs == [N_VOCAB, N_VOCAB + 3]
        assert suppress(model) == theirs
    assert stored.read_rows == [(name, N_VOCAB, 5)]


def check_equal() -> None:
    embeddings = random(40, 8)
    other, last = embeddings.clone(), embeddings.clone()
    other[1, 1] += 1
    last[-1, -1] += 1
    stored = Stored({"a": embeddings, "same": embeddings.clone(), "other": other, "last": last})
    lazily._COMPARED = 80
    equal = lazily._equal_of(stored, torch.equal)
    for name, wanted in (("same", True), ("other", False), ("last", False)):
        pair = [stored.lazy(n).to(torch.float32) for n in ("a", name)]
        assert torch.equal(*[LazyTorchTensor.to_eager(lazy) for lazy in pair]) is wanted
        stored.read_rows.clear()
        assert equal(stored.lazy("a").to(torch.float32), stored.lazy(name)) is wanted
        assert max(count for _, _, count in stored.read_rows) == 10
        assert len(stored.read_rows) == (2 if name == "other" else 8)
    assert equal(torch.ones(2), torch.ones(2)) is True


def check_mxfp4() -> None:
    from quantkit.checkpoint.converter.replaced import _LazyNumpy, _mxfp4_rows

    stored = Stored(
        {
            f"layers.0.ffn.experts.{i}.w1.{part}": torch.randint(
                100, 130, (4, columns), generator=GENERATOR, dtype=torch.uint8
            )
            for i in range(3)
            for part, columns in (("weight", 32), ("scale", 2))
        }
    )
    written: list[Any] = []
    from conversion.deepseek import DeepseekV4Model

    model = SimpleNamespace(
        hparams={"n_routed_experts": 3},
        model_tensors={n: lambda n=n: stored.lazy(n) for n in stored.tensors},
        repack_mxfp4_blocks=DeepseekV4Model.repack_mxfp4_blocks,
        gguf_writer=SimpleNamespace(add_tensor=lambda *a, **k: written.append((a, k))),
        format_tensor_name=lambda key, bid: f"{key}.{bid}",
    )
    key = gguf.MODEL_TENSOR.FFN_GATE_EXP
    consumed = DeepseekV4Model._write_mxfp4_expert_tensor(model, 0, "w1", key)
    write = lazily._deepseek_experts(_mxfp4_rows, _LazyNumpy.stack)
    assert write(model, 0, "w1", key) == consumed
    ((name, theirs), settings), ((our_name, ours), our_settings) = written
    assert (name, settings) == (our_name, our_settings)
    assert np.array_equal(evaluate(whole(ours)), theirs)
    assert {p.node._args[0].name for p in reads(Rows(ours, 1, 2))} == set(consumed[2:4])


def check_large_reads() -> None:
    """What is not on the list is refused by name, and asks the parent for nothing."""
    from quantkit.checkpoint.converter.captured import StoredTensors
    from quantkit.checkpoint.converter.confined import RefusedError

    source = StoredTensors(None, {"large.weight": ("F32", (4096, 4096))})  # type: ignore[arg-type]
    said = "it reads the 67,108,864 bytes of large.weight while it describes"
    with pytest.raises(RefusedError, match=said):
        LazyTorchTensor.to_eager(source.lazy("large.weight"))


for check in (
    check_large_reads,
    check_maple,
    check_qwen4exp,
    check_equal,
    check_mxfp4,
    check_minimax,
):
    check()
    sys.stdout.write(f"{check.__name__}\n")
