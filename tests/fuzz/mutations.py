"""What can be wrong with a file: bytes, JSON or YAML, an archive, and what it is at all."""

import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path, random.Random], object]

GIANT = 20 * 10**9

_DEEP = "[" * 100_000
_RAW = "\0RAW\0"  # before what stands in JSON as it is
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**9, 200_000, 10**30),
    *("", " ", "x", "0", "128", "1e9", "true", "null", "NaN", "\0", "\n", "\ud800", "\udcff"),
    *("../../x", "/etc/passwd", "..", ".", "C:\\x", "a/b", "a\nb", "x" * 300, "x" * 1_000_000),
    *("[/bold]", "[bold", "\x1b[2J\x1b[31mred", "\u202eabc", "{{ 7*7 }}", "%s%n", "\u2581", "<s>"),
    *([], {}, [[]], [None], {"": None}, {"a": {"a": {"a": []}}}, [0] * 1000, ["x"] * 1000),
    *([1, 2], [-1, 10**12], ["a", 1], [[1], [2]], {"content": 1}, {"type": 1}, {"id": "x"}),
    *(_RAW + "9" * 400, _RAW + "-" + "9" * 5000, _RAW + "1e400", _RAW + _DEEP + "]" * 100_000),
    *(_RAW + '{"a":' * 5000 + "1" + "}" * 5000, _RAW + "1" * 40 + ".5"),
)
_KEYS = ("", "[/bold]", "\x1b[2J", "a\nb", "../x", "x" * 100_000, "\ud800", "0", "-1", "9" * 5000)


# --- what a file is --------------------------------------------------------------------------


def become_strange(path: Path, rng: random.Random) -> None:
    """Something else than a regular file of some size."""
    path.unlink(missing_ok=True)
    match rng.randrange(9):
        case 0:
            path.symlink_to("nowhere")
        case 1:
            path.symlink_to(path.name)
        case 2:
            path.mkdir()
        case 3:
            os.mkfifo(path)
        case 4:
            path.symlink_to("/dev/zero")
        case 5:
            path.touch()
            os.truncate(path, GIANT)
        case 6:
            path.touch()
        case 7:
            os.mkfifo(path.with_name("pipe"))
            path.symlink_to("pipe")
        case 8:
            path.symlink_to("/proc/self/mem")


def become_giant(path: Path, _rng: random.Random) -> None:
    """As it is, then 20 GB of nothing, which take no room."""
    os.truncate(path, GIANT)


# --- bytes -----------------------------------------------------------------------------------


def change_bytes(path: Path, rng: random.Random, within: int = 2**16) -> None:
    """Some bytes near the beginning, or the length."""
    data = bytearray(path.read_bytes())
    size = min(len(data), within) or 1
    at = rng.randrange(size)
    match rng.randrange(9):
        case 0:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= rng.randint(1, 255)
        case 1:
            data[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**62, 2**64 - 1]))
        case 2:
            data[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**31 - 1, 2**32 - 1]))
        case 3:
            del data[rng.randrange(len(data)) :]
        case 4:
            data[at:at] = rng.randbytes(rng.choice([1, 8, 1000]))
        case 5:
            data[at : at + 64] = data[:64]
        case 6:
            del data[at : at + rng.choice([1, 4, 8, 100])]
        case 7:
            data[:0] = b"\xef\xbb\xbf"
        case 8:
            data = bytearray(rng.randbytes(rng.choice([1, 7, 100, 5000])))
    path.write_bytes(data)


def change_number(path: Path, rng: random.Random) -> None:
    """One of the counts and lengths at the beginning of a binary header."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 2)):
        at = rng.choice([4, 8, 16, 24, 32, *(rng.randrange(0, min(len(data), 4000)) for _ in "12")])
        value = rng.choice([0, 1, 3, 7, 2**16, 2**31, 2**40, 2**62, 2**63, 2**64 - 1])
        data[at : at + 8] = struct.pack("<Q", value)
    path.write_bytes(data)


def change_metadata(path: Path, rng: random.Random) -> None:
    """The value of a GGUF's key, or its type, or the key itself."""
    from quantkit.checkpoint.gguf import read_header

    spans = [*read_header(path).spans.items()]
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        key, (start, end) = rng.choice(spans)
        value = start + 8 + len(key.encode()) + 4
        match rng.randrange(4):
            case 0:
                data[start + 8] = rng.choice(b"xX_\x00\xff")
            case 1:
                data[value - 4 : value] = struct.pack("<I", rng.randrange(14))
            case _:
                number = rng.choice([0, 1, 2, 3, 5, 255, 2**16, 2**31 - 1, 2**32 - 1])
                data[value : min(end, value + 4)] = struct.pack("<I", number)[: end - value]
    path.write_bytes(data)


def change_table(path: Path, rng: random.Random) -> None:
    """A tensor's name, shape, type or offset in a GGUF."""
    from quantkit.checkpoint.gguf import read_header

    header = read_header(path)
    data = bytearray(path.read_bytes())
    tensor = rng.choice(header.tensors)
    name = tensor.name.encode()
    start = data.index(struct.pack("<Q", len(name)) + name) + 8
    after = start + len(name) + 4
    match rng.randrange(4):
        case 0:
            data[start + rng.randrange(len(name))] = rng.choice(b"./\n\x1b\xffz")
        case 1:
            at = after + 8 * rng.randrange(len(tensor.shape))
            data[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 3, 32, 256, 2**33, 2**62]))
        case 2:
            at = after + 8 * len(tensor.shape)
            data[at : at + 4] = struct.pack("<I", rng.randrange(45))
        case _:
            at = after + 8 * len(tensor.shape) + 4
            other = rng.choice(header.tensors).offset
            data[at : at + 8] = struct.pack("<Q", rng.choice([0, 7, other, 2**40, 2**63]))
    path.write_bytes(data)


def change_weights(path: Path, rng: random.Random) -> None:
    """Some bytes anywhere behind the header's beginning."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 100])):
        data[rng.randrange(len(data) // 2, len(data))] = rng.choice([0, 0x7C, 0x7F, 0xFF])
    path.write_bytes(data)


# --- JSON ------------------------------------------------------------------------------------


def change_json(path: Path, rng: random.Random) -> None:
    """Some values or keys of a JSON document, or the form of its text."""
    document = json.loads(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        document = _changed(document, rng)
    path.write_bytes(_text(document, rng))


def change_lines(path: Path, rng: random.Random) -> None:
    """A line of a file of one JSON document per line."""
    lines = path.read_bytes().split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0 | 1:
            if lines[at].strip():
                document = json.loads(lines[at])
                for _ in range(rng.choice([1, 1, 3])):
                    document = _changed(document, rng)
                lines[at] = _text(document, rng)
        case 2:
            del lines[at]
        case 3:
            lines.insert(at, rng.choice([b"{", b"[]", b"\xff\xfe", b"{}", b"null", lines[-1][:9]]))
    path.write_bytes(b"\n".join(lines))


def _text(document: Any, rng: random.Random) -> bytes:
    text = json.dumps(document)
    while (at := text.find('"\\u0000RAW\\u0000')) >= 0:
        end = text.index('"', at + 1)
        while text[end - 1] == "\\":
            end = text.index('"', end + 1)
        raw = json.loads(text[at : end + 1]).removeprefix(_RAW)
        text = text[:at] + raw + text[end + 1 :]
    data = text.encode()
    match rng.randrange(20):
        case 0:
            data = b"\xef\xbb\xbf" + data
        case 1:
            data = data.replace(b"{", b'{"a": 1, "a": 2, ', 1)
        case 2:
            data = text.encode("utf-16")
        case 3:
            data = data[: rng.randrange(len(data))]
    return data


def _changed(document: Any, rng: random.Random) -> Any:
    """The document with one value changed, at a depth that favours what is near the top."""
    if isinstance(document, dict) and document and rng.random() < 0.9:
        key = rng.choice(list(document))
        match rng.randrange(10):
            case 0:
                return {k: v for k, v in document.items() if k != key}
            case 1:
                new = rng.choice(_KEYS)
                return {(new if k == key else k): v for k, v in document.items()}
            case 2:
                return document | {rng.choice(_KEYS): rng.choice(_VALUES)}
        return document | {key: _changed(document[key], rng)}
    if isinstance(document, list) and document and rng.random() < 0.7:
        at = rng.randrange(len(document))
        match rng.randrange(6):
            case 0:
                return document[:at] + document[at + 1 :]
            case 1:
                return [*document, document[at]]
        return [*document[:at], _changed(document[at], rng), *document[at + 1 :]]
    if type(document) is int and rng.random() < 0.3:
        return rng.choice([-document, document * 10**9, document + 1, float(document)])
    return rng.choice(_VALUES)


# --- model cards -----------------------------------------------------------------------------


def change_card(path: Path, rng: random.Random) -> None:
    """A model card whose front matter is an attack."""
    names = "abcdefghi"
    bomb = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    bomb += [f"{b}: &{b} [{','.join(f'*{a}' for _ in range(9))}]" for a, b in zip(names, names[1:])]  # noqa: B905, RUF007
    front = rng.choice(
        [
            "\n".join(bomb),
            "a: " + "[" * 20_000,
            "a: " + "{a: " * 5000,
            "tags:\n" + "- x\n" * 200_000,
            "license: !!python/object/apply:os.system [touch x]",
            "license: [a, [b], {c: d}]\nlanguage: 3\ntags: {a: b}",
            "date: 2021-13-45",
            f"a: {'9' * 5000}",
            "license: mit\nlicense_name: \x1b[2J\nbase_model: [/bold]",
            "a: &x\n  <<: *x",
            "? [a]\n: b",
            "\t- bad",
            f"license: {'x' * 300_000}",
            "base_model:\n- 1\n- null\n- {}\ndatasets: 7\nmodel-index: x",
            "name: \u202e\nmodel_name: a/../../b\nquantized_by: [1]",
        ]
    )
    text = f"---\n{front}\n---\n# x\n"
    if rng.random() < 0.1:
        text = text.replace("\n---\n# x", "")
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(data if rng.random() < 0.9 else data + b"\xff\xfe")


# --- archives --------------------------------------------------------------------------------


def change_archive(path: Path, rng: random.Random) -> None:
    """A zip of torch.save with other flags, methods, entries or programs."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = next(n for n, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    method = zipfile.ZIP_STORED
    which = rng.randrange(9)
    if which == 0:
        method = rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    elif which == 1:  # of which a few kB are left
        entries[at] = (entries[at][0], bytes(rng.choice([10**6, 5 * 10**7])))
        method = zipfile.ZIP_DEFLATED
    elif which == 2:
        entries.append(entries[rng.randrange(len(entries))])
    elif which == 3:
        del entries[rng.randrange(len(entries))]
    elif which == 4:
        entries[at] = (entries[at][0], _program(entries[at][1], rng))
    elif which == 5:
        entries.append(("archive/byteorder", rng.choice([b"big", b"", bytes(10**6)])))
    elif which == 6:
        entries[at] = ("../" + entries[at][0], entries[at][1])
    buffer = io.BytesIO()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, data in entries:
                archive.writestr(name, data)
    content = bytearray(buffer.getvalue())
    if which in (7, 8):  # flags, methods, sizes and offsets in the directory at the end
        start = content.rfind(b"PK\x01\x02") if which == 7 else content.find(b"PK\x01\x02")
        field = start + rng.choice([6, 8, 10, 20, 24, 28, 30, 34, 42])
        content[field : field + 4] = struct.pack("<I", rng.choice([1, 8, 99, 2**16, 2**32 - 1]))
    path.write_bytes(content)


def _program(program: bytes, rng: random.Random) -> bytes:
    """Another pickle."""
    match rng.randrange(10):
        case 0:
            data = bytearray(program)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            return bytes(data)
        case 1:
            return b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R."
        case 2:  # a memo of 2**32 places, an array of 2**40 bytes
            return b"\x80\x02}r\xff\xff\xff\xff."
        case 3:
            return b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"."
        case 4:
            return program.replace(b"K\x01", b"\x8a\x20" + b"\x7f" * 32, 2)
        case 5:
            return b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
        case 6:  # a key whose hash is a million calls deep, or 2**60 parts wide
            deep = b"N" + b"\x85" * 10**6
            places = [struct.pack("<I", n) for n in range(60)]
            wide = b"N\x85" + b"".join(b"r" + n + b"j" + n + b"\x86" for n in places)
            return b"\x80\x02}" + rng.choice([deep, wide]) + b"Ns."
        case 7:  # another state for whatever was made last, another number somewhere
            state = rng.choice([b"}", b"(NK\x00(J\xff\xff\xff\xff)t", b"(KKKKt"])
            return program.replace(b"tR", b"tR" + state + b"b", rng.choice([1, 1000]))
        case 8:
            number = struct.pack("<i", rng.choice([-1, 2**31 - 1, 2**16]))
            return program.replace(b"K\x00", b"J" + number, rng.choice([1, 1000]))
        case _:
            return program[: rng.randrange(len(program))]
