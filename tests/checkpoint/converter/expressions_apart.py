"""Expressions of the converter's lazy tensors, checked where they can be imported.

``python expressions_apart.py TREE PACKAGES`` prints a line for each expression: its name, the rows
of leaves that its middle rows are made of, and whether its rows are rows of the checkpoint.
"""

import json
import random
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    tree, packages = sys.argv[1:]
    sys.path[:0] = [tree, f"{tree}/gguf-py", packages]
    import numpy as np
    import torch
    from conversion.base import LazyTorchTensor
    from gguf.lazy import LazyNumpyTensor

    from quantkit.checkpoint.converter.expressions import evaluate, reads
    from quantkit.checkpoint.converter.nodes import Leaf, Rows, shape_of, whole
    from quantkit.checkpoint.converter.runs import rows_of_sources

    generator = torch.Generator().manual_seed(3)
    tensors = {
        "a": torch.randn((12, 8), generator=generator),
        "b": torch.randn((12, 8), generator=generator),
        "halves": torch.randn((12, 8), generator=generator).to(torch.bfloat16),
        "experts": torch.randn((6, 10, 8), generator=generator),
        "codes": torch.randint(0, 255, (6, 10, 4, 16), generator=generator, dtype=torch.uint8),
        "scales": torch.rand((3, 2), generator=generator) + 0.5,
        "row": torch.randn((8,), generator=generator),
        "order": torch.randperm(12, generator=generator),
        "packed": torch.randint(0, 2**31, (12, 2), generator=generator, dtype=torch.int32),
    }

    def read(name: str, first: int, count: int) -> torch.Tensor:
        tensor = tensors[name]
        return tensor[first : first + count].clone() if tensor.ndim else tensor.clone()

    def lazy(name: str) -> Any:
        tensor = tensors[name]
        meta = LazyTorchTensor.meta_with_dtype_and_shape(tensor.dtype, tuple(tensor.shape))
        leaf = Leaf(name, tuple(tensor.shape), read)
        return LazyTorchTensor(meta=meta, args=(leaf,), func=Leaf.load)

    def shifts(tensor: Any) -> Any:
        """A constant, as lazy as what it is combined with."""
        values = torch.arange(0, 32, 8, dtype=torch.int32)
        is_plain = type(tensor) is torch.Tensor
        return values if is_plain else LazyTorchTensor.from_eager(values)

    made: dict[str, Callable[[Callable[[str], Any]], Any]] = {
        "itself": lambda t: t("a"),
        "widened": lambda t: t("halves").to(torch.float32),
        "narrowed": lambda t: t("a").to(torch.float16),
        "plus one": lambda t: t("a") + 1,
        "in place": lambda t: add_in_place(t("a").reshape(12, 8)),
        "sum": lambda t: t("a") * 2 - t("b"),
        "row by row": lambda t: t("a") * t("row"),
        "stacked": lambda t: torch.stack([t("a"), t("b"), t("a")], dim=0),
        "stacked inside": lambda t: torch.stack([t("a"), t("b")], dim=1),
        "concatenated": lambda t: torch.cat([t("a"), t("b")], dim=0),
        "side by side": lambda t: torch.cat([t("a"), t("b")], dim=-1),
        "experts' rows": lambda t: t("experts")[:, ::2, :],
        "experts' first rows": lambda t: t("experts")[:, :5],
        "an expert": lambda t: t("experts")[3],
        "some experts": lambda t: t("experts")[1:5],
        "from the back": lambda t: t("experts")[..., ::2],
        "transposed": lambda t: t("experts").transpose(-1, -2),
        "matrix transposed": lambda t: t("a").T.contiguous(),
        "permuted": lambda t: t("experts").permute(0, 2, 1),
        "all axes": lambda t: t("experts").permute(1, 0, 2),
        "heads": lambda t: t("a").reshape(3, 2, 2, 8).swapaxes(1, 2).reshape(12, 8),
        "reshaped": lambda t: t("a").reshape(24, 4),
        "flat": lambda t: t("a").view(-1, 1),
        "chunk": lambda t: t("a").chunk(3, dim=0)[1],
        "chunk inside": lambda t: t("experts").chunk(2, dim=1)[1],
        "split": lambda t: t("a").split([2, 7, 3], dim=0)[1],
        "split columns": lambda t: torch.split(t("a"), 2, dim=-1)[2],
        "squeezed": lambda t: t("a").unsqueeze(1).squeeze(),
        "scaled": lambda t: t("scales").repeat_interleave(4, 0).repeat_interleave(4, 1) * t("a"),
        "gathered": lambda t: t("a")[t("order")],
        "unpacked": lambda t: (t("packed").unsqueeze(-1) >> shifts(t("packed"))) & 3,
        "nibbles": lambda t: torch.cat([t("codes") & 15, t("codes") >> 4], dim=-1).view(6, 40, 32),
        "sorted": lambda t: torch.sort(t("a"), dim=0)[0],
        "summed": lambda t: t("a").cumsum(dim=0),
        "numpy": lambda t: t("experts").numpy(),
        "numpy's type": lambda t: t("a").numpy().astype(np.float16),
    }

    def add_in_place(tensor: Any) -> Any:
        tensor += 1
        return tensor

    chosen = random.Random(5)
    for name, make in made.items():
        node = make(lazy)
        wanted = make(lambda name: tensors[name].clone())
        if isinstance(wanted, torch.Tensor):
            wanted = wanted.numpy() if isinstance(node, LazyNumpyTensor) else wanted
        n = shape_of(node)[0]
        same = torch.equal if isinstance(wanted, torch.Tensor) else np.array_equal
        for _ in range(20):
            first = chosen.randrange(n)
            stop = chosen.randint(first + 1, n)
            assert same(evaluate(Rows(node, first, stop)), wanted[first:stop]), (name, first, stop)
        assert same(evaluate(whole(node)), wanted), name
        assert node._data is None, name  # nothing stays
        middle = Rows(node, n // 2, n // 2 + 1)
        needed = sum(part.stop - part.first for part in reads(middle))
        runs = rows_of_sources(node)
        if runs is not None:
            flat = {key: t.reshape(-1, t.shape[-1]) for key, t in tensors.items() if t.ndim}
            found = torch.cat([flat[run.source][run.row : run.row + run.rows] for run in runs])
            values = np.asarray(wanted, np.float32).reshape(found.shape)
            assert np.array_equal(found.float().numpy(), values), name
        sys.stdout.write(json.dumps([name, needed, runs is not None]) + "\n")


if __name__ == "__main__":
    main()
