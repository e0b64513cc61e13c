"""Cases by seed: a folder with something wrong in it, and a command that meets it."""

import hashlib
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import mutations
from tests.fuzz.mutations import Change

MODEL: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
ARTIFACT = "Model-74K-Q8_0.gguf"


@dataclass(frozen=True)
class Case:
    """What to run in a case's folder.

    ``arguments`` are of the command line; ``call`` is called instead where no command is so small.
    ``codes`` are the exit codes that are right. ``look`` looks at the folder after a success, and
    tells what is wrong with what was made or said to be sound. ``heavy`` cases need PyTorch.
    """

    what: str
    arguments: Sequence[str] = ()
    call: Callable[[Path], object] | None = None
    codes: frozenset[int] = frozenset({0, 2})
    look: Callable[[Path], str | None] = lambda _folder: None
    heavy: bool = False


# --- what is sound, made once ----------------------------------------------------------------


def make_sound(root: Path) -> None:
    """A checkpoint of every kind, an artifact of every kind, and builds in every state."""
    from tests.imatrix_writer import legacy_imatrix, write_gguf_imatrix
    from tests.pickled import pickled
    from tests.random_checkpoints import random_checkpoint
    from tests.raw_releases import raw_release

    model = random_checkpoint(root / "mistral" / "Model", "mistral", shards=2, **MODEL)
    for name, document in _SIDE_FILES.items():
        (model / name).write_text(json.dumps(document))
    (model / "README.md").write_text(_CARD)
    (model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    bpe = random_checkpoint(
        root / "bpe" / "Model", "mixtral", num_local_experts=2, **MODEL, vocab_size=300
    )
    (bpe / "tokenizer.model").unlink()
    write_bpe(bpe)
    (bpe / "README.md").write_text(_CARD)
    one = random_checkpoint(root / "one" / "Model", "mixtral", num_local_experts=2, **MODEL)
    for layout in ("pth", "safetensors-stacked"):
        raw_release(one, root / layout / "Model", layout)
    pickled(one, root / "bin" / "Model", tied=True)
    make_gptq(root / "gptq" / "Model")
    _write_bnb(one, root / "bnb")
    q, up = np.ones((1, 64), np.float32), np.ones((1, 64), np.float32)
    entries = {
        f"blk.0.{part}.weight": (values, np.array([7]))
        for part, values in (("attn_q", q), ("ffn_up", up), ("attn_v", q))
    }
    (root / "files").mkdir()
    write_gguf_imatrix(root / "files" / "imatrix.gguf", entries)
    old = {name: (values, 3) for name, (values, _) in entries.items()}
    (root / "files" / "imatrix.dat").write_bytes(legacy_imatrix(old))
    (root / "files" / "text.txt").write_text("Once upon a time there was a text. " * 400)
    (root / "files" / "SHA256SUMS").write_text(f"{'0' * 64}  {ARTIFACT}\n")
    (root / "files" / "compare.json").write_text(json.dumps(_comparison()))
    _write_recorded(root / "files" / "reference.kld")
    _build_states(model, root)
    _calibration_states(one, root)


def _build_states(model: Path, root: Path) -> None:
    """A finished build, and one that was interrupted before its last step."""
    from quantkit.building.artifact import Progress
    from quantkit.building.engine import build
    from quantkit.building.work import prepare
    from quantkit.formats.layout import FileOptions
    from quantkit.planning.quants import find_quants
    from quantkit.planning.recipe import EncodingOptions

    ggml = EncodingOptions("ggml")
    work = prepare(model, find_quants(["q8_0"]), encoding=ggml)
    build(work, root / "finished", jobs=1, max_memory=2**30)
    shards = prepare(model, find_quants(["bf16"]), FileOptions(shard_size=60_000), ggml)
    build(shards, root / "split", jobs=1, max_memory=2**30)
    single = prepare(model, find_quants(["bf16"]), encoding=ggml)
    build(single, root / "whole", jobs=1, max_memory=2**30)
    for kind, files in (
        ("single", (root / "whole").glob("*.gguf")),
        ("quantized", (root / "finished").glob("*.gguf")),
        ("shards", (root / "split").rglob("*.gguf")),
    ):
        (root / "gguf" / kind).mkdir(parents=True)
        for file in files:
            shutil.copy(file, root / "gguf" / kind)
    both = prepare(model, find_quants(["q8_0", "f16"]), encoding=ggml)

    def stop(progress: Progress) -> None:
        if progress.stage == "verify":
            raise KeyError

    try:
        build(both, root / "begun", jobs=1, max_memory=2**30, report=stop)
    except KeyError:
        return
    raise AssertionError("the build was to be interrupted")


_CALIBRATED = ["--text", "text.txt", "--chunks", "1", "--context", "32"]
_MATRIX = "imatrix.gguf"
RUNS = ("imatrix", "gptq-int4", "dense")


def calibration(kind: str) -> list[str]:
    """The command whose interrupted run is a state, run in a case's folder."""
    if kind == "imatrix":
        return ["calibrate", "Model", "-o", f"out/{_MATRIX}", *_CALIBRATED]
    if kind == "dense":
        return ["densify", "Model", "-o", "out/dense", "--merge", "fit", *_CALIBRATED]
    wish = ["build", "Model", "-q", "gptq-int4", "--group-size", "32", "-o", "out", "--no-smoke"]
    return [*wish, *_CALIBRATED]


def _calibration_states(model: Path, root: Path) -> None:
    """Runs over a text that were stopped with all layers done, and what they should end in."""
    from unittest.mock import patch

    from quantkit.calibration.progress import LayerJournal
    from tests.cli.command import quantkit

    real = LayerJournal.record

    def stop(self: LayerJournal, layer: Any) -> None:
        real(self, layer)
        raise KeyboardInterrupt

    before = Path.cwd()
    for kind in RUNS:
        for folder, patched in ((root / "stopped" / kind, True), (root / "ended" / kind, False)):
            _lay_out_run(model, root, folder)
            os.chdir(folder)
            try:
                with patch.object(LayerJournal, "record", stop if patched else real):
                    outcome = quantkit(*calibration(kind))
            finally:
                os.chdir(before)
            assert outcome.code == 130 if patched else not outcome.code, outcome


def _lay_out_run(model: Path, root: Path, folder: Path) -> None:
    """A folder to run over a text in."""
    _copy(model, folder / "Model")
    shutil.copyfile(root / "files" / "text.txt", folder / "text.txt")
    (folder / "out").mkdir()


_CARD = "---\nlicense: mit\nlanguage: [en]\ntags:\n- moe\nbase_model: a/b\n---\n# Model\n"
_SIDE_FILES: dict[str, Any] = {
    "generation_config.json": {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "do_sample": True},
    "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}},
    "added_tokens.json": {"<extra>": 383},
    "tokenizer_config.json": {
        "add_bos_token": True,
        "tokenizer_class": "LlamaTokenizer",
        "chat_template": "{{ bos_token }}",
        "added_tokens_decoder": {"0": {"content": "<unk>", "special": True, "normalized": False}},
        "bos_token": {"content": "<s>", "lstrip": False},
        "eos_token": "</s>",
    },
}


def write_bpe(folder: Path) -> None:
    """A byte-level BPE of 300 tokens."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(topics["assignment"].splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
    settings = {"tokenizer_class": "GPT2Tokenizer", **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def make_gptq(folder: Path) -> Path:
    """A GPTQ folder whose weights are all alike."""
    from quantkit.families import find_family
    from quantkit.formats.gptq.packing import pack
    from quantkit.formats.gptq.stored import PARTS, quantize_config
    from tests.random_checkpoints import config_of, random_tensors, write_tokenizer
    from tests.safetensors_writer import write_checkpoint

    config = config_of("mistral", **MODEL)
    targets = find_family(config).describe(config, ()).targets
    linear = {t.blocks[0].source for t in targets if t.is_linear}
    tensors: dict[str, Any] = {}
    for name, tensor in random_tensors(config).items():
        if name not in linear:
            tensors[name] = tensor
            continue
        rows, columns = tensor[1]
        levels = np.zeros((rows, columns), np.uint8)
        ones = np.ones((rows, 2), np.float32)
        packed = pack(levels, ones, ones, 4)
        for part in PARTS:
            tensors[name.removesuffix("weight") + part] = getattr(packed, part)
    config["quantization_config"] = quantize_config(4, 32, 0.01, False, True)
    write_checkpoint(folder, tensors, config)
    write_tokenizer(folder)
    return folder


def _write_bnb(checkpoint: Path, out: Path) -> None:
    from quantkit.building.engine import build
    from quantkit.building.work import prepare
    from quantkit.planning.quants import find_quants

    (made,) = build(prepare(checkpoint, find_quants(["bnb-nf4"])), out, jobs=1, max_memory=2**30)
    made.path.rename(out / "Model")


def _comparison() -> dict[str, Any]:
    from quantkit.verification.divergence import Measures

    measures = {field.name: 0.5 for field in fields(Measures)} | {"n_tokens": 100}
    row = {
        "name": ARTIFACT,
        "file": ARTIFACT,
        "quant": "q8_0",
        "bytes": 1,
        "is_reference": False,
        "measures": measures | {"kld_percentiles": [0.1, 0.2]},
        "speed": None,
        "verdict": {"ok": True, "reason": "close"},
    }
    return {
        "reference": "a.gguf",
        "reference_quant": "bf16",
        "text": "text",
        "text_sha256": "0" * 64,
        "context": 512,
        "windows": 4,
        "threads": 1,
        "artifacts": [row],
    }


def _write_recorded(path: Path) -> None:
    from quantkit.verification.reference import RecordedText, write_header

    text = RecordedText(np.zeros((2, 8), np.int32), 16)
    with path.open("wb") as file:
        write_header(file, text)
        file.write(bytes(text.n_windows * text.window_bytes))


# --- cases -----------------------------------------------------------------------------------


def make_case(seed: int, sound: Path, folder: Path) -> Case:
    """Prepare a case in an empty folder: the same one for the same seed."""
    rng = random.Random(seed)
    kinds = [kind for kind, weight in _KINDS for _ in range(weight)]
    return rng.choice(kinds)(rng, sound, folder)


def _copy(source: Path, target: Path) -> Path:
    """A folder of copies."""
    shutil.copytree(source, target)
    return target


def _plan(rng: random.Random, model: str) -> list[str]:
    """A command that reads headers, tokenizer and card of a checkpoint and writes nothing."""
    return rng.choice(
        [
            ["build", model, "-q", "q4_k_m", "--dry-run"],
            ["build", model, "-q", "q8_0", "-q", "q2_k", "--dry-run", "--json"],
            ["inspect", model],
            ["inspect", model],
            ["build", model, "-q", "f16", "--dry-run"],
            ["fit", model, "--gpu", "24GB", "--ram", "64GB"],
        ]
    )


_OF_ARCHIVES: tuple[Change, ...] = (
    mutations.change_archive,
    mutations.change_archive,
    mutations.change_archive,
    mutations.change_bytes,
    mutations.become_strange,
    mutations.become_giant,
)
_CHANGES: dict[str, tuple[Change, ...]] = {
    ".json": (
        mutations.change_json,
        mutations.change_json,
        mutations.change_json,
        mutations.change_json,
        mutations.change_bytes,
        mutations.become_strange,
        mutations.become_giant,
    ),
    ".md": (mutations.change_card, mutations.change_card, mutations.become_strange),
    ".safetensors": (
        mutations.change_bytes,
        mutations.change_number,
        mutations.become_strange,
        mutations.become_giant,
    ),
    ".pth": _OF_ARCHIVES,
    ".bin": _OF_ARCHIVES,
    "": (mutations.change_bytes, mutations.become_strange, mutations.become_giant),
}


def _damage(rng: random.Random, folder: Path, favoured: Sequence[str] = ()) -> str:
    """Change one file of a folder; what was done."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    name = rng.choice([*names, *favoured])
    changes = _CHANGES.get(Path(name).suffix, _CHANGES[""])
    change = rng.choice(changes)
    change(folder / name, rng)
    return f"{change.__name__} {name}"


def _checkpoint(rng: random.Random, sound: Path, folder: Path) -> Case:
    kind = rng.choice(["mistral", "bpe"])
    model = _copy(sound / kind / "Model", folder / "Model")
    favoured = ["config.json"] * 3 + ["tokenizer.json"] * 4 * (kind == "bpe")
    what = _damage(rng, model, favoured)
    return Case(f"{kind}: {what}", _plan(rng, "Model"))


def _raw(rng: random.Random, sound: Path, folder: Path) -> Case:
    """A raw release, or a checkpoint whose weights torch.save wrote, too."""
    layout = rng.choice(["pth", "bin", "safetensors-stacked"])
    model = _copy(sound / layout / "Model", folder / "Model")
    what = _damage(rng, model, ["pytorch_model.bin" if layout == "bin" else "params.json"] * 2)
    return Case(f"{layout}: {what}", _plan(rng, "Model"))


def _quantized(rng: random.Random, sound: Path, folder: Path) -> Case:
    kind = rng.choice(["gptq", "bnb"])
    model = _copy(sound / kind / "Model", folder / "Model")
    if kind == "bnb" and rng.random() < 0.5:
        what = _change_state(rng, model)
    elif rng.random() < 0.3:
        what = _change_tensor(rng, model)
    else:
        what = _damage(rng, model, ["config.json"] * 3)
    return Case(f"{kind}: {what}", call=export, heavy=True)


def export(folder: Path) -> None:
    """Open a quantized folder as a checkpoint, and read of every matrix."""
    from quantkit.building.work import prepare_export
    from quantkit.formats.dequantized import open_artifact
    from quantkit.planning.quants import find_quants

    prepare_export(folder / "Model", find_quants(["f16"]))
    opened = open_artifact(folder / "Model")
    for name, tensor in opened.checkpoint.tensors.items():
        if len(tensor.shape) == 2:
            opened.read_rows(name, 0, min(2, tensor.shape[0]))


def _change_state(rng: random.Random, model: Path) -> str:
    """Change the JSON of a quant state, which lies in a tensor, or how it is described."""
    [file] = model.glob("*.safetensors")
    header, data = _split_safetensors(file)
    name = rng.choice([n for n in header if ".quant_state." in n])
    begin, end = header[name]["data_offsets"]
    document = json.loads(data[begin:end])
    text = mutations._text(mutations._changed(document, rng), rng)
    if len(text) <= end - begin:
        data = data[:begin] + text.ljust(end - begin) + data[end:]
    _join_safetensors(file, header, data)
    return f"quant state {name}"


def _change_tensor(rng: random.Random, model: Path) -> str:
    """Describe a tensor as another one of as many bytes, or change its values."""
    [file] = model.glob("*.safetensors")
    header, data = _split_safetensors(file)
    name = rng.choice([n for n in header if n != "__metadata__"])
    begin, end = header[name]["data_offsets"]
    size = end - begin
    match rng.randrange(4):
        case 0:
            header[name] |= {"dtype": "U8", "shape": [size]}
        case 1:
            header[name] |= {"shape": [*header[name]["shape"], 1]}
        case 2:
            header[name] |= {
                "dtype": "U8",
                "shape": rng.choice([[size, 1], [1, size], [1, 1, size]]),
            }
        case 3:
            data = data[:begin] + rng.choice([b"\xff", b"\x7f"]) * size + data[end:]
    _join_safetensors(file, header, data)
    return f"tensor {name}"


def _split_safetensors(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _join_safetensors(file: Path, header: dict[str, Any], data: bytes) -> None:
    raw = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def _gguf(rng: random.Random, sound: Path, folder: Path) -> Case:
    path = folder / ARTIFACT
    shutil.copyfile(sound / "finished" / ARTIFACT, path)
    change = rng.choice(
        [
            *[mutations.change_number] * 3,
            *[mutations.change_bytes] * 3,
            mutations.become_strange,
            mutations.become_giant,
        ]
    )
    change(path, rng)
    command = rng.choice([["inspect", path.name], ["fit", path.name, "--gpu", "8GB"]])
    return Case(f"gguf: {change.__name__}", command)


def _source(rng: random.Random, sound: Path, folder: Path) -> Case:
    """A GGUF as a source: one file, a quantized one, or shards."""
    kind = rng.choice(["single", "quantized", "shards"])
    files = sorted(p.name for p in _copy(sound / "gguf" / kind, folder / "source").iterdir())
    change = rng.choice(
        [
            *[mutations.change_metadata] * 4,
            *[mutations.change_table] * 3,
            mutations.change_number,
            mutations.change_bytes,
            mutations.become_strange,
            mutations.become_giant,
        ]
    )
    changed = rng.choice(files)
    change(folder / "source" / changed, rng)
    source = f"source/{files[0]}"
    command = rng.choice(
        [
            ["build", source, "-q", "q4_k_m,q8_0", "--dry-run"],
            ["build", source, "-q", "q5_0", "--no-smoke", "--kernel", "ggml", "-o", "out"],
            ["inspect", source],
        ]
    )
    if kind == "quantized" and command[0] == "build" and rng.randrange(4):
        command.append("--allow-requantize")
    return Case(f"{kind} source: {change.__name__} {changed}", command)


def _small_file(rng: random.Random, sound: Path, folder: Path) -> Case:
    name = rng.choice(["imatrix.gguf", "imatrix.dat", "text.txt", "compare.json", "reference.kld"])
    shutil.copyfile(sound / "files" / name, folder / name)
    changes = [mutations.change_bytes, mutations.become_strange, mutations.become_giant]
    if name.endswith(".json"):
        changes += [mutations.change_json] * 4
    elif not name.endswith(".txt"):
        changes += [mutations.change_number] * 3
    change = rng.choice(changes)
    change(folder / name, rng)
    what = f"{change.__name__} {name}"
    if name.startswith("imatrix"):
        _copy(sound / "mistral" / "Model", folder / "Model")
        return Case(
            what, ["build", "Model", "-q", "iq4_xs", "-q", "q4_0", "--dry-run", "--imatrix", name]
        )
    # What is wrong with a recorded reference is no fault of what the user gave.
    return Case(what, call=_READERS[name], codes=frozenset({0, 1, 2}))


def _read_text(folder: Path) -> None:
    from quantkit.calibration.sources import read_text

    read_text(folder / "text.txt")


def _read_comparison(folder: Path) -> None:
    from quantkit.planning.quants import all_quants
    from quantkit.publishing.layout import Placed, PublishedArtifact
    from quantkit.publishing.measured import read_comparison

    placed = Placed(folder / "compare.json", ARTIFACT, 1, "0" * 64)
    entry = {"files": [{"name": ARTIFACT, "bytes": 1}]}
    artifact = PublishedArtifact(ARTIFACT, all_quants()["q8_0"], "", (placed,), entry)
    read_comparison(folder / "compare.json", [artifact])


def _read_reference(folder: Path) -> None:
    from quantkit.verification.reference import read_text, read_window

    text = read_text(folder / "reference.kld")
    read_window(folder / "reference.kld", text, text.n_windows - 1)


_READERS: dict[str, Callable[[Path], None]] = {
    "text.txt": _read_text,
    "compare.json": _read_comparison,
    "reference.kld": _read_reference,
}


def _state(rng: random.Random, sound: Path, folder: Path) -> Case:
    """A build into a folder in which an earlier one left something."""
    from quantkit.building.journal import NAME as JOURNAL
    from quantkit.building.manifest import NAME as MANIFEST

    _copy(sound / "mistral" / "Model", folder / "Model")
    for file in (folder / "Model").iterdir():
        times = (sound / "mistral" / "Model" / file.name).stat()
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    state = rng.choice(["finished", "begun", "begun", "new"])
    out = folder / "out"
    if state == "new":
        out.mkdir()
    else:
        _copy(sound / state, out)
    _point_journal_here(out / JOURNAL, sound / "mistral" / "Model", folder / "Model")
    outside = folder / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious" * 100)
    (outside / "folder").mkdir()
    choices: list[tuple[str, Callable[[], object]]] = []
    if state == "finished":
        artifact, manifest = out / ARTIFACT, out / MANIFEST
        choices += [
            ("json", lambda: mutations.change_json(manifest, rng)),
            ("json", lambda: mutations.change_json(manifest, rng)),
            ("bytes", lambda: mutations.change_bytes(manifest, rng)),
            ("strange", lambda: mutations.become_strange(manifest, rng)),
            ("shorter", lambda: os.truncate(artifact, rng.randrange(artifact.stat().st_size))),
            ("giant", lambda: mutations.become_giant(artifact, rng)),
        ]
    if state == "begun":
        journal = out / JOURNAL
        one = rng.choice(sorted(out.glob("*.partial")))
        choices += [
            ("lines", lambda: mutations.change_lines(journal, rng)),
            ("lines", lambda: mutations.change_lines(journal, rng)),
            ("bytes", lambda: mutations.change_bytes(journal, rng)),
            ("strange", lambda: mutations.become_strange(journal, rng)),
            ("partial", lambda: mutations.change_bytes(one, rng)),
            ("partial strange", lambda: mutations.become_strange(one, rng)),
            ("shorter", lambda: os.truncate(one, rng.randrange(one.stat().st_size))),
        ]
    partials = (f".{MANIFEST}.partial", f"{JOURNAL}.partial", f"{ARTIFACT}.partial")
    place = out / rng.choice((*partials, JOURNAL, MANIFEST, ARTIFACT))

    def link() -> None:
        place.unlink(missing_ok=True)
        match rng.randrange(4):
            case 0:
                place.symlink_to(outside / "precious")
            case 1:
                place.hardlink_to(outside / "precious")
            case 2:
                place.symlink_to(outside / "folder")
            case 3:
                place.symlink_to(outside / "new")

    choices += [(f"link {place.name}", link)] * (8 if state == "new" else 3)
    what, change = rng.choice(choices)
    change()
    command = ["build", "Model", "-q", "q8_0", "-o", "out", "--no-smoke", "--jobs", "1"]
    look = partial(_same_artifact, sound)
    return Case(f"{state} build: {what}", [*command, "--kernel", "ggml"], look=look)


def _same_artifact(sound: Path, folder: Path) -> str | None:
    """Whether a build made what it should."""
    same = sum_of(folder / "out" / ARTIFACT) == sum_of(sound / "finished" / ARTIFACT)
    return None if same else "the artifact is not the one that it should be"


def _point_journal_here(journal: Path, there: Path, here: Path) -> None:
    """A journal knows its source by path and time, and here is a copy."""
    if journal.exists():
        text = journal.read_text().replace(str(there.resolve()), str(here.resolve()))
        journal.write_text(text)


def _folder(rng: random.Random, sound: Path, folder: Path) -> Case:
    """What is finished, looked at with a manifest or sums that lie."""
    from quantkit.building.manifest import NAME as MANIFEST

    out = _copy(sound / "finished", folder / "out")
    shutil.copyfile(sound / "files" / "SHA256SUMS", out / "SHA256SUMS")
    name = rng.choice([MANIFEST, MANIFEST, MANIFEST, "SHA256SUMS"])
    changes = [mutations.change_bytes, mutations.become_strange, mutations.become_giant]
    if name == MANIFEST:
        changes += [mutations.change_json] * 4
    change = rng.choice(changes)
    change(out / name, rng)
    return Case(f"verify: {change.__name__} {name}", ["verify", "out"], codes=frozenset({0, 1, 2}))


def _calibration(rng: random.Random, sound: Path, folder: Path) -> Case:
    """A run over a text in a folder where an earlier one was stopped."""
    kind = rng.choice(RUNS)
    there = sound / "stopped" / kind
    _copy(there / "out", folder / "out")
    _copy(there / "Model", folder / "Model")
    shutil.copyfile(there / "text.txt", folder / "text.txt")
    for file in (folder / "Model").iterdir():
        times = (there / "Model" / file.name).stat()
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    [journal] = (folder / "out").rglob("journal.json")
    state = journal.parent
    _rewrite_journal(journal, lambda text: text.replace(str(there), str(folder)))
    (folder / "precious").write_bytes(b"precious" * 100)
    name = rng.choice([*sorted(path.name for path in state.iterdir()), *["journal.json"] * 4])
    changes: list[Change] = [mutations.change_bytes, mutations.become_strange]
    if name == journal.name:
        changes += [mutations.change_json] * 4 + [mutations.become_giant]
    change = rng.choice(changes)
    change(state / name, rng)
    what = f"{change.__name__} {name}"
    if change is mutations.change_json and rng.random() < 0.5:
        _rewrite_journal(journal, lambda text: text)
        what += ", which says that it is sound"
        return Case(f"{kind}: {what}", calibration(kind), heavy=True)
    if rng.random() < 0.2:
        place = state / rng.choice(["journal.new", "imatrix.gguf", "layer-0.safetensors"])
        place.unlink(missing_ok=True)
        place.symlink_to(folder / "precious")
        what += f" and link {place.name}"
    look = partial(_same_as_ended, sound / "ended" / kind)
    return Case(f"{kind}: {what}", calibration(kind), look=look, heavy=True)


def _rewrite_journal(journal: Path, change: Callable[[str], str]) -> None:
    """Change the text of a journal and make it say that it is as it was written."""
    try:
        document = json.loads(change(journal.read_text()))
        both = json.dumps([document["identity"], document["layers"]])
        document["crc"] = zlib.crc32(both.encode())
        journal.write_text(json.dumps(document))
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # it cannot even say that


def _same_as_ended(ended: Path, folder: Path) -> str | None:
    """What a run made that is not as it would be if nothing had stopped it."""
    from quantkit.checkpoint.imatrix import load_imatrix

    expected, found = ended / "out", folder / "out"
    names = {path.relative_to(expected) for path in expected.rglob("*") if path.is_file()}
    if names != {path.relative_to(found) for path in found.rglob("*") if path.is_file()}:
        return f"out holds {sorted(map(str, found.rglob('*')))}"
    for name in names - {Path("quantkit.json"), Path("dense/README.md")}:
        if name.name == _MATRIX:  # which says, too, from where
            ours, theirs = (load_imatrix(place / name).entries for place in (found, expected))
            same = all((ours[key] == theirs[key]).all() for key in theirs)
        else:
            same = sum_of(found / name) == sum_of(expected / name)
        if not same:
            return f"{name} is not laid out as expected"
    return None


def _publish(rng: random.Random, sound: Path, folder: Path) -> Case:
    """What is finished, about to be published with a file that lies."""
    from quantkit.building.manifest import NAME as MANIFEST

    out = _copy(sound / "finished", folder / "build")
    model = _copy(sound / "mistral" / "Model", folder / "Model")
    shutil.copyfile(sound / "files" / "compare.json", out / "compare.json")
    places = [out / MANIFEST] * 4 + [out / "compare.json"] * 3 + [out / ARTIFACT]
    places += [model / "README.md"] * 2 + [model / "LICENSE", model / "tokenizer_config.json"]
    place = rng.choice(places)
    if place.name == "LICENSE":
        place.write_text("MIT License")
    changes = _CHANGES.get(place.suffix, _CHANGES[""])
    if place.suffix == ".gguf":
        changes = (mutations.change_number, mutations.change_bytes, *_CHANGES[""])
    change = rng.choice(changes)
    change(place, rng)
    command = ["publish", "build", "--repo", "a/b", "--dry-run", "--force"]
    command += rng.choice([[], ["--card-only"], ["--json"], ["--license", "mit"]])
    if place.parent == model or rng.random() < 0.3:
        command += ["--checkpoint", "Model"]
    what = f"publish: {change.__name__} {place.name}"
    if rng.random() < 0.5:
        return Case(what, command)
    wish = "Model" if "--checkpoint" in command else None
    return Case(what, call=partial(_prepare, wish))


def _prepare(checkpoint: str | None, folder: Path) -> None:
    """Everything that publishing does before it sends, every byte read."""
    from quantkit.publishing.release import PublishOptions, prepare

    prepare(folder / "build", "a/b", PublishOptions(checkpoint=checkpoint, force=True))


def _run(rng: random.Random, sound: Path, folder: Path) -> Case:
    """An artifact that is not as it was built, run and measured."""
    codes = frozenset({0, 1, 2})
    if rng.random() < 0.25:
        kind = rng.choice(["gptq", "bnb"])
        model = _copy(sound / kind / "Model", folder / "Model")
        what = _damage(rng, model, ["config.json"] * 2)
        command = rng.choice([["smoke", "Model"], ["compare", "Model", *_reference(sound, folder)]])
        return Case(f"run {kind}: {what}", command, codes=codes, heavy=True)
    out = _copy(sound / "finished", folder / "out")
    if rng.random() < 0.3:
        (out / "quantkit.json").unlink()
    place = rng.choice([*[out / ARTIFACT] * 3, *out.glob("*.json")])
    changes: list[Change] = [mutations.become_strange, mutations.become_giant]
    if place.suffix == ".gguf":
        changes += [mutations.change_number, mutations.change_weights, mutations.change_bytes] * 2
    else:
        changes += [mutations.change_json] * 4
    change = rng.choice(changes)
    change(place, rng)
    what = f"{change.__name__} {place.name}"
    if rng.random() < 0.5:
        look = partial(_as_built, sound) if (out / "quantkit.json").is_file() else None
        artifact = rng.choice(["out", f"out/{ARTIFACT}"])
        if look is None or place.suffix != ".gguf":
            return Case(f"smoke: {what}", ["smoke", artifact], codes=codes)
        return Case(f"smoke: {what}", ["smoke", artifact], codes=codes, look=look)
    command = ["compare", "out", *_reference(sound, folder)]
    return Case(f"compare: {what}", command, codes=codes)


def _as_built(sound: Path, folder: Path) -> str | None:
    """Whether what passed is what was built."""
    same = sum_of(folder / "out" / ARTIFACT) == sum_of(sound / "finished" / ARTIFACT)
    return None if same else "it passed, and is not what was built"


def _reference(sound: Path, folder: Path) -> list[str]:
    """Options of a comparison with what is sound."""
    shutil.copyfile(sound / "finished" / ARTIFACT, folder / "reference.gguf")
    shutil.copyfile(sound / "files" / "text.txt", folder / "text.txt")
    wish = ["--reference", "reference.gguf", "--text", "text.txt", "--chunks", "1"]
    return [*wish, "--context", "32", "--jobs", "1"]


def _wish(rng: random.Random, _sound: Path, _folder: Path) -> Case:
    """Numbers and names on the command line."""
    value = rng.choice(
        ["9" * 400, "9" * 400 + "GB", "1e400", "-1", "0", "nan", "", "\x1b[2J", "x" * 5000, "1GB\n"]
    )
    option = rng.choice(["--ram", "--gpu"])
    return Case(f"fit {option}", ["fit", "mixtral-8x7b", f"{option}={value}"])


_KINDS: tuple[tuple[Callable[[random.Random, Path, Path], Case], int], ...] = (
    (_checkpoint, 8),
    (_raw, 4),
    (_quantized, 3),
    (_gguf, 2),
    (_source, 4),
    (_small_file, 4),
    (_state, 4),
    (_folder, 2),
    (_wish, 1),
    (_calibration, 2),
    (_publish, 2),
    (_run, 1),
)


def sum_of(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
