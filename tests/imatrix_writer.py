"""Writes importance matrices in both of llama.cpp's formats, with whatever a test wants."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]


def write_gguf_imatrix(
    path: Path,
    entries: Mapping[str, tuple[Values, Values]],
    *,
    datasets: list[str] | None = None,
    chunk_count: int = 4,
) -> Path:
    """Write sums of squares, shape (matrices, columns), and counts, one per matrix."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"] if datasets is None else datasets)
    writer.add_uint32("imatrix.chunk_count", chunk_count)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", np.asarray(sums, np.float32))
        writer.add_tensor(f"{name}.counts", np.asarray(counts, np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy_imatrix(entries: Mapping[str, tuple[Values, int]], ending: bytes | None = None) -> bytes:
    """The bytes of a ``.dat``: values and a call count by name, then chunks and the text's name."""
    data = struct.pack("<i", len(entries))
    for name, (values, calls) in entries.items():
        raw = np.asarray(values, "<f4").tobytes()
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", calls, len(raw) // 4) + raw
    text = b"text.txt"
    return data + (struct.pack("<ii", 4, len(text)) + text if ending is None else ending)
