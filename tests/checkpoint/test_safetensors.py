import json
import os
import re
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantkit.checkpoint.safetensors import is_unneeded_buffer, read_header
from quantkit.core.errors import CheckpointError, SafetensorsError
from quantkit.core.printable import quoted
from quantkit.core.tensors import FLOAT_BYTES, SourceTensor
from tests.safetensors_writer import Tensor, tag, to_bf16, write_safetensors

Header = dict[str, Any]


def write_raw(path: Path, header: str | bytes, data: bytes = b"") -> Path:
    """Write a file with any header at all."""
    raw = header if isinstance(header, bytes) else header.encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(path: Path, *patterns: str) -> str:
    """The one sentence that a file is refused with; it names the file and fits the patterns."""
    with pytest.raises(SafetensorsError) as caught:
        read_header(path)
    message = str(caught.value)
    assert isinstance(caught.value, CheckpointError)
    assert caught.value.exit_code == 2
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 600
    for pattern in patterns:
        assert re.search(pattern, message), message
    return message


# --- files that are read ---------------------------------------------------------------------


def test_tensors_lie_where_the_header_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    f32 = rng.standard_normal((3, 5), dtype=np.float32)
    f16 = rng.standard_normal((2, 2, 7)).astype(np.float16)
    bf16 = to_bf16(rng.standard_normal(9))
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"b": f32, "a": f16, "c": bf16}, {"format": "pt"})

    tensors = read_header(path)

    assert list(tensors) == ["b", "a", "c"]
    assert [(t.name, t.dtype, t.shape, t.n_bytes) for t in tensors.values()] == [
        ("b", "F32", (3, 5), 60),
        ("a", "F16", (2, 2, 7), 56),
        ("c", "BF16", (9,), 18),
    ]
    content = path.read_bytes()
    for tensor, data in zip(
        tensors.values(), (f32.tobytes(), f16.tobytes(), bf16.data), strict=True
    ):
        assert tensor.file == path
        assert content[tensor.offset : tensor.offset + tensor.n_bytes] == data


def test_order_is_that_of_the_offsets_not_of_the_header(tmp_path: Path) -> None:
    header = {"z": entry(offsets=[8, 16]), "a": entry(offsets=[16, 24]), "m": entry()}
    path = write_raw(tmp_path / "x.safetensors", json.dumps(header), bytes(24))
    assert list(read_header(path)) == ["m", "z", "a"]


def test_scalars_empty_tensors_and_empty_files_are_valid(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    empty = np.zeros((0, 4), np.float32)
    write_safetensors(path, {"empty": empty, "scalar": np.zeros((), np.float32)})
    assert [t.shape for t in read_header(path).values()] == [(0, 4), ()]
    write_safetensors(path, {})
    assert read_header(path) == {}


def test_an_empty_tensor_shares_its_offset_with_the_next(tmp_path: Path) -> None:
    header = {"w": entry(), "empty": entry(shape=[0], offsets=[0, 0])}
    path = write_raw(tmp_path / "x.safetensors", json.dumps(header), bytes(8))
    assert list(read_header(path)) == ["empty", "w"]


def test_a_link_is_read_as_the_file_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    write_safetensors(tmp_path / "blobs" / "0a1b", {"a": np.ones(4, np.float32)})
    link = tmp_path / "model.safetensors"
    link.symlink_to(Path("blobs") / "0a1b")
    assert read_header(link)["a"].file == link


def test_no_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.ones(4, np.float32)})

    def lowest_free_descriptor() -> int:
        descriptor = os.open(path, os.O_RDONLY)
        os.close(descriptor)
        return descriptor

    before = lowest_free_descriptor()
    read_header(path)
    assert lowest_free_descriptor() == before


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.0, 0xC000),
        (1 + 2**-8, 0x3F80),  # half way, to even below
        (1 + 3 * 2**-8, 0x3F82),  # half way, to even above
        (1 + 2**-8 + 2**-20, 0x3F81),
        (3.4e38, 0x7F80),  # beyond the largest bfloat16
        (float("inf"), 0x7F80),
        (float("nan"), 0x7FC0),
    ],
)
def test_to_bf16_rounds_to_nearest_even(value: float, bits: int) -> None:
    assert to_bf16(np.array([value], np.float32)).data == bits.to_bytes(2, "little")


# --- buffers and other dtypes ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "transformer.h.0.attention.bias",
        "transformer.h.0.attention.masked_bias",
    ],
)
def test_unneeded_buffers_are_listed_if_float_and_left_out_otherwise(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "x.safetensors"
    weight = np.ones((2, 2), np.float32)
    assert is_unneeded_buffer(name)
    for buffer in (np.ones(3, bool), np.ones(3, np.int64), np.ones(3, np.float64)):
        write_safetensors(path, {name: buffer, "w": weight})
        tensors = read_header(path)
        assert list(tensors) == ["w"]
        assert tensors["w"].offset == path.stat().st_size - 16
    write_safetensors(path, {name: np.ones(3, np.float32), "w": weight})
    assert list(read_header(path)) == [name, "w"]


@pytest.mark.parametrize(
    ("dtype", "shape", "n_bytes"),
    [
        ("F8_E4M3", (4,), 4),
        ("F8_E5M2", (4,), 4),
        ("F8_E8M0", (4,), 4),
        ("F4", (4,), 2),
        ("F6_E2M3", (4,), 3),
        ("F6_E3M2", (4,), 3),
        ("F8_E4M3FNUZ", (4,), 4),
        ("F8_E5M2FNUZ", (4,), 4),
        ("I16", (4,), 8),
        ("U32", (4,), 16),
        ("U64", (4,), 32),
        ("U8", (4,), 4),
        ("I8", (4,), 4),
        ("BOOL", (4,), 4),
        ("U16", (4,), 8),
        ("I32", (4,), 16),
        ("I64", (4,), 32),
        ("F64", (4,), 32),
        ("C64", (4,), 32),
    ],
)
def test_other_dtypes_are_refused_by_name(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], n_bytes: int
) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"layer.7.w": (dtype, shape, bytes(n_bytes))})
    refusal(path, r"'layer\.7\.w'", rf"\b{dtype}\b", "F32, F16 and BF16", "original", "bfloat16")


def test_attention_bias_of_other_dtypes_is_no_buffer(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"layers.0.attention.q_proj.bias": np.ones(3, np.int8)})
    refusal(path, "q_proj", "I8")


# --- files that cannot be read ---------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    refusal(tmp_path / "x.safetensors", "does not exist", "download")


def test_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").symlink_to("gone")
    refusal(tmp_path / "x.safetensors", "does not exist", "download")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()
    refusal(tmp_path / "x.safetensors", "not a regular file")


@pytest.mark.timeout(120)  # time: whoever opens a pipe waits for ever; being refused takes none
def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    refusal(tmp_path / "x.safetensors", "not a regular file")


def test_file_without_permission(plain_users_folder: Path) -> None:
    path = plain_users_folder / "x.safetensors"
    write_safetensors(path, {"a": np.ones(4, np.float32)})
    path.chmod(0)
    refusal(path, "cannot be read", "Permission denied", "permissions")


def test_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
        "size 12345\n"
    )
    refusal(path, "Git LFS pointer", "git lfs pull")


# --- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bytes", range(8))
def test_file_shorter_than_its_length_field(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(n_bytes))
    refusal(path, "truncated", f"{n_bytes} bytes", "download it again")


def test_header_above_the_limit_of_the_format(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little") + b"{}")
        file.truncate(200_000_000)  # sparse, so the limit and not the file's end is what stops it
    refusal(path, "100,000,001 bytes", "100 MB", "download it again")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1])
def test_header_length_beyond_all_files(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    refusal(path, f"{length:,} bytes", "100 MB")


def test_truncated_header_says_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.ones(4, np.float32)})
    content = path.read_bytes()
    header_end = len(content) - 16
    path.write_bytes(content[: header_end - 5])
    refusal(path, "truncated", "at least 5 bytes are missing", "download it again")


@pytest.mark.parametrize("missing", [1, 16, 39, 40])
def test_truncated_data_says_how_much_is_missing(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.ones(4, np.float32), "b": np.ones(6, np.float32)})
    os.truncate(path, path.stat().st_size - missing)
    refusal(
        path, "truncated", rf"\b{missing} bytes of its tensors are missing", "download it again"
    )


def test_trailing_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.ones(4, np.float32)})
    with path.open("ab") as file:
        file.write(bytes(3))
    message = refusal(path, "3 bytes after its last tensor", "belong to no tensor", "download")
    assert "truncated" not in message


# --- headers that are not what the format asks for -------------------------------------------


@pytest.mark.parametrize(
    ("header", "pattern"),
    [
        (b"", "does not begin with '{'"),
        (b" {}", "does not begin with '{'"),
        (b"[]", "does not begin with '{'"),
        (b"\xef\xbb\xbf{}", "does not begin with '{'"),
        (b'{"\xff":1}', "not UTF-8"),
        (b'{"\xed\xa0\x80":1}', "not UTF-8"),
        (b"{", "not JSON"),
        (b"{}\0", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b'{"a\n": 1}', "not JSON"),
        (b'{"a": NaN}', "holds NaN, which is not JSON"),
        (b'{"a": [-Infinity]}', "holds -Infinity, which is not JSON"),
        (b'{"a": ' + b"9" * 5_000_000 + b"}", "holds a number of 5,000,000 digits"),
        (b'{"a": -0}', "holds the number -0"),
        (b'{"a": ' + b"[" * 1_000_000 + b"}", "nested too deeply"),
        (b'{"a":' * 1_000_000, "nested too deeply"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_not_a_json_object(tmp_path: Path, header: bytes, pattern: str) -> None:
    path = write_raw(tmp_path / "x.safetensors", header)
    refusal(path, "not a valid safetensors file", pattern, "download it again or save it again")


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ('{"a": %s, "a": %s}', "a"),
        ('{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', "dtype"),
        ('{"__metadata__": {}, "a": %s, "__metadata__": {}}', "__metadata__"),
        ('{"__metadata__": {"x": "1", "\\u0078": "2"}, "a": %s}', "x"),
    ],
)
def test_duplicate_keys(tmp_path: Path, header: str, key: str) -> None:
    path = write_raw(
        tmp_path / "x.safetensors", header.replace("%s", json.dumps(entry())), bytes(8)
    )
    refusal(path, f"key '{key}' twice", "download")


def test_metadata_may_be_null(tmp_path: Path) -> None:
    """As the official library has it."""
    header = json.dumps({"__metadata__": None, "a": entry()})
    assert set(read_header(write_raw(tmp_path / "x.safetensors", header, bytes(8)))) == {"a"}


@pytest.mark.parametrize("metadata", ["pt", ["format"], 1, {"format": 1}, {"a": {"b": "c"}}])
def test_metadata_is_strings(tmp_path: Path, metadata: Any) -> None:
    header = json.dumps({"__metadata__": metadata, "a": entry()})
    refusal(
        write_raw(tmp_path / "x.safetensors", header, bytes(8)),
        "__metadata__ is not a map of strings to strings",
    )


@pytest.mark.parametrize(
    "description",
    [
        None,
        3,
        "F32",
        [],
        {},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "data_offsets": [0, 8]},
        {"shape": [2], "data_offsets": [0, 8]},
        {**entry(), "strides": [1]},
    ],
)
def test_entries_are_exactly_three_fields(tmp_path: Path, description: Any) -> None:
    path = write_raw(tmp_path / "x.safetensors", json.dumps({"a": description}), bytes(8))
    refusal(path, "tensor 'a'", "exactly dtype, shape and data_offsets", "download")


@pytest.mark.parametrize("dtype", ["F31", "f32", "", "float32", None, 32, ["F32"], {"F32": 1}])
def test_unknown_dtypes(tmp_path: Path, dtype: Any) -> None:
    path = write_raw(tmp_path / "x.safetensors", json.dumps({"a": entry(dtype)}), bytes(8))
    refusal(path, "tensor 'a'", "unknown dtype", re.escape(repr(dtype)), "download")


@pytest.mark.parametrize(
    "shape",
    [None, 2, "2", {"0": 2}, [2.0], [True, 2], [-2], [-1, -1, 2], [[2]], ["2"], [None], [2**63]],
)
def test_shapes_are_sizes(tmp_path: Path, shape: Any) -> None:
    path = write_raw(tmp_path / "x.safetensors", json.dumps({"a": entry(shape=shape)}), bytes(8))
    refusal(path, "tensor 'a'", "shape", "not a list of sizes", "download")


@pytest.mark.parametrize("shape", [[2**62, 8], [2**40] * 5, [2**62] * 100_000, [2**62, 2**62, 0]])
def test_shapes_that_overflow(tmp_path: Path, shape: list[int]) -> None:
    path = write_raw(tmp_path / "x.safetensors", json.dumps({"a": entry(shape=shape)}), bytes(8))
    refusal(path, "tensor 'a'", "shape", "too large for any file", "download")


@pytest.mark.parametrize(
    "offsets",
    [
        *(None, 8, "0,8", {}, [], [8], [0, 4, 8], [8, 0], [-8, 0], [0, 8.0], [False, 8]),
        *([0, "8"], [0, None], [0, 2**63]),
    ],
)
def test_offsets_are_a_range(tmp_path: Path, offsets: Any) -> None:
    path = write_raw(
        tmp_path / "x.safetensors", json.dumps({"a": entry(offsets=offsets)}), bytes(8)
    )
    refusal(path, "tensor 'a'", "data_offsets", "no range", "download")


@pytest.mark.parametrize(
    ("dtype", "shape", "end"),
    [("F32", [2], 7), ("F32", [2], 9), ("F16", [2], 8), ("BF16", [2, 3], 8), ("F32", [0], 8)],
)
def test_size_fits_dtype_and_shape(tmp_path: Path, dtype: str, shape: list[int], end: int) -> None:
    header = json.dumps({"a": entry(dtype, shape, [0, end])})
    refusal(
        write_raw(tmp_path / "x.safetensors", header, bytes(end)),
        rf"tensor 'a' takes {end} bytes, which does not fit {dtype} and the shape",
    )


def test_sizes_that_end_inside_a_byte(tmp_path: Path) -> None:
    header = json.dumps({"a": entry("F4", [3], [0, 1])})
    refusal(write_raw(tmp_path / "x.safetensors", header, bytes(1)), "takes 1 bytes", "F4")


def test_overlap(tmp_path: Path) -> None:
    header = json.dumps({"a": entry(), "b": entry(offsets=[5, 13])})
    refusal(
        write_raw(tmp_path / "x.safetensors", header, bytes(13)),
        "tensor 'b' overlaps the one before it by 3 bytes",
        "download",
    )


def test_two_tensors_in_the_same_bytes(tmp_path: Path) -> None:
    header = json.dumps({"a": entry(), "b": entry()})
    refusal(write_raw(tmp_path / "x.safetensors", header, bytes(8)), "'b' overlaps", "8 bytes")


@pytest.mark.parametrize("first", [{}, {"a": entry()}])
def test_holes(tmp_path: Path, first: Header) -> None:
    begin = 8 * len(first) + 4
    header = json.dumps({**first, "b": entry(offsets=[begin, begin + 8])})
    refusal(
        write_raw(tmp_path / "x.safetensors", header, bytes(begin + 8)),
        "4 bytes before tensor 'b' belong to no tensor",
        "download",
    )


def test_a_left_out_buffer_still_takes_its_place(tmp_path: Path) -> None:
    """Leaving a buffer out of the answer does not leave it out of the checks."""
    buffer = entry("I64", [1], [4, 12])
    header = json.dumps({"x.rotary_emb.inv_freq": buffer, "w": entry("F32", [1], [0, 4])})
    path = write_raw(tmp_path / "x.safetensors", header, bytes(11))
    refusal(path, "truncated", "1 bytes")


def test_names_are_text(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.safetensors", json.dumps({"\ud800": entry()}), bytes(8))
    refusal(path, "its header holds half of a surrogate pair")


def test_a_huge_name_does_not_fill_the_screen(tmp_path: Path) -> None:
    header = json.dumps({"\x1b[2J" + "a" * 1_000_000: entry("F31")})
    message = refusal(write_raw(tmp_path / "x.safetensors", header, bytes(8)), "unknown dtype")
    assert "\x1b" not in message
    assert len(quoted("a" * 1_000_000)) < 200


# --- any damage at all -----------------------------------------------------------------------

FUZZ = settings(derandomize=True, database=None, max_examples=200, deadline=None)  # time: pytest's


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, dict[str, SourceTensor]]:
    """A valid file: where it lies, its bytes, and what is read from it."""
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": to_bf16(np.arange(24).reshape(6, 4)),
        "model.layers.0.mlp.w1": np.ones((3, 4), np.float16),
        "model.norm.weight": np.ones(4, np.float32),
        "scalar": tag("F32", np.ones((), np.float32)),
    }
    write_safetensors(path, tensors, {"format": "pt"})
    return path, path.read_bytes(), read_header(path)


def check_consistent(path: Path) -> dict[str, SourceTensor] | None:
    """Read a damaged file: either it is refused, or what is read tiles the file exactly."""
    try:
        tensors = read_header(path)
    except SafetensorsError:
        refusal(path)
        return None
    end = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    for name, tensor in tensors.items():
        assert (tensor.name, tensor.file, tensor.offset) == (name, path, end)
        assert tensor.n_bytes == prod(tensor.shape) * FLOAT_BYTES[tensor.dtype]
        end += tensor.n_bytes
    assert end == path.stat().st_size
    return tensors


Valid = tuple[Path, bytes, dict[str, SourceTensor]]


@FUZZ
@given(
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_changed_bytes(valid: Valid, edits: list[tuple[int, int]]) -> None:
    path, content, expected = valid
    damaged = bytearray(content)
    for position, value in edits:
        damaged[position % len(content)] = value
    path.write_bytes(damaged)
    tensors = check_consistent(path)
    data_start = min(tensor.offset for tensor in expected.values())
    if damaged[:data_start] == content[:data_start]:
        assert tensors == expected


@FUZZ
@given(length=st.integers(0, 2**16))
@example(length=0)
def test_truncation_is_always_refused(valid: Valid, length: int) -> None:
    path, content, _ = valid
    path.write_bytes(content[: length % len(content)])
    refusal(path, "truncated", "download it again")


@FUZZ
@given(tail=st.binary(min_size=1, max_size=64))
def test_appended_bytes_are_always_refused(valid: Valid, tail: bytes) -> None:
    path, content, _ = valid
    path.write_bytes(content + tail)
    refusal(path, f"{len(tail)} bytes after its last tensor")


@FUZZ
@given(
    start=st.integers(0, 2**16),
    length=st.integers(0, 40),
    replacement=st.one_of(
        st.binary(max_size=40),
        st.text(alphabet='{}[]",:0123456789.-eE \\u', max_size=40).map(str.encode),
        st.sampled_from([b"NaN", b"1e999", b"-0", b"true", b"null", b"9" * 5000, b"[" * 100_000]),
    ),
)
def test_replaced_pieces_of_the_header(
    valid: Valid, start: int, length: int, replacement: bytes
) -> None:
    path, content, _ = valid
    header_bytes = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + header_bytes], content[8 + header_bytes :]
    start %= header_bytes
    header = header[:start] + replacement + header[start + length :]
    write_raw(path, header, data)
    check_consistent(path)


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["F32", "F16", "BF16", "I8", "F4"]),
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=3), st.dictionaries(st.text(max_size=4), children, max_size=3)
    ),
    max_leaves=6,
)
sizes = st.lists(st.integers(0, 4), max_size=3)


@FUZZ
@given(
    header=st.dictionaries(
        st.one_of(st.text(max_size=4), st.just("__metadata__")),
        st.one_of(
            json_values,
            st.fixed_dictionaries(
                {
                    "dtype": st.one_of(st.sampled_from(["F32", "F16", "BF16", "I8"]), json_values),
                    "shape": st.one_of(sizes, json_values),
                    "data_offsets": st.one_of(sizes, json_values),
                }
            ),
        ),
        max_size=4,
    ),
    n_bytes=st.integers(0, 16),
)
def test_headers_of_any_values(
    tmp_path_factory: pytest.TempPathFactory, header: Header, n_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.safetensors"
    check_consistent(write_raw(path, json.dumps(header), bytes(n_bytes)))
