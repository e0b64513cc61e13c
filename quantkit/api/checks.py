"""The smoke test as a build uses it: on an artifact under its partial name."""

from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from quantkit.core.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quantkit.building.artifact import Check
    from quantkit.building.work import Work
    from quantkit.checkpoint.checkpoint import Checkpoint, Description
    from quantkit.formats.layout import Layout
    from quantkit.verification.hollow import HeaderOnly
    from quantkit.verification.tokens import ExpectedTokens

# What an artifact that is no GGUF is exported to for its smoke test.
SMOKE_QUANT = "q8_0"


def require_loadable(work: "Work", projector: "Work | None" = None) -> None:
    """Refuse, before a weight is read, what llama.cpp would not load.

    That is a model that is described by others (llama.cpp's converter, or a GGUF's own header), and
    the vision or audio part of one.

    Raises:
        CheckpointError: it lacks a tensor, or has one of another shape, or metadata that cannot be.

    """
    from quantkit.api.projector import layout_of
    from quantkit.core.errors import CheckpointError, NativeError
    from quantkit.verification.hollow import refusal
    from quantkit.verification.projector import projector_refusal

    checkpoint, whole = work.checkpoint, "the checkpoint is whole and its config.json its own"
    if checkpoint.header is not None:
        whole = "it is whole and its metadata its own"
    elif checkpoint.description is None:
        return
    if (layout := work.gguf) is None:
        return
    with suppress(NativeError):  # the smoke test says so
        if reason := refusal(_hollow(layout)):
            raise CheckpointError(
                f"{checkpoint.path} would become a GGUF that llama.cpp does not load ({reason}); "
                f"check that {whole}."
            )
        part = layout_of(projector)
        if part is None:
            return
        if reason := projector_refusal(_hollow(part)[0], _hollow(layout), part.takes or ()):
            raise CheckpointError(
                f"The vision or audio part of {checkpoint.path} would become a GGUF that llama.cpp "
                f"does not load ({reason}); check that the checkpoint is whole, or build it "
                "without that part (--mmproj none)."
            )


def _hollow(layout: "Layout") -> "list[HeaderOnly]":
    from quantkit.verification.hollow import HeaderOnly

    return [HeaderOnly(Path(file.name).name, file.header, file.n_bytes) for file in layout.files]


def has_several_tokenizers(checkpoint: "Checkpoint") -> bool:
    """Whether a checkpoint has several tokenizers, which may contradict each other."""
    from quantkit.checkpoint.tokenizer.source import vocabulary_files

    return len(vocabulary_files(checkpoint.path)) > 1


def expect_tokens_of(checkpoint: "Checkpoint") -> "ExpectedTokens | None":
    """What the checkpoint's own tokenizer gives, its chat template's output included.

    Of a GGUF the vocabulary is copied, and there is no other that it could be compared with; nor is
    there one for what no family of ours and nobody else has described.

    Raises:
        TokenizerError: its library cannot open it.

    """
    from quantkit.checkpoint.folder import is_foreign
    from quantkit.checkpoint.tokenizer.chat_template import special_tokens, template_metadata
    from quantkit.checkpoint.tokenizer.source import read_source
    from quantkit.publishing.prompt import render_prompt
    from quantkit.verification.tokens import expect_tokens

    if checkpoint.header is not None:
        return None
    if checkpoint.description is not None:
        return _expect_described(checkpoint, checkpoint.description)
    if is_foreign(checkpoint):
        return None
    source = read_source(checkpoint.path, checkpoint.config)
    template = template_metadata(source).get("tokenizer.chat_template")
    prompt = None
    if isinstance(template, str) and template:
        prompt = render_prompt(template, special_tokens(checkpoint.path))
    return expect_tokens(checkpoint.path, checkpoint.config, [prompt] if prompt else [])


def _expect_described(checkpoint: "Checkpoint", description: "Description") -> "ExpectedTokens":
    """What the own tokenizer of a checkpoint gives that llama.cpp's converter describes.

    It is opened as those of our families are; where that does not hold, as the converter's
    transformers opens it.
    """
    from quantkit.checkpoint.converter.tokens import sized, vocabulary_file
    from quantkit.checkpoint.tokenizer.chat_template import special_tokens
    from quantkit.checkpoint.tokenizer.source import FAST
    from quantkit.core.errors import QuantkitError, TokenizerError
    from quantkit.core.writing import write_file
    from quantkit.publishing.prompt import render_prompt
    from quantkit.verification.tokens import ExpectedTokens, expect_tokens

    metadata = description.header.metadata
    config = sized(checkpoint.config, metadata)
    template, prompts = metadata.get("tokenizer.chat_template"), []
    if isinstance(template, str) and template:
        with suppress(QuantkitError):
            prompts = [render_prompt(template, special_tokens(checkpoint.path)) or ""]
    frame = description.tokens.frame
    if metadata.get("tokenizer.ggml.model") is None:
        return ExpectedTokens("", (), (), lacking="the GGUF has no vocabulary.")
    try:
        first = vocabulary_file(checkpoint.path, metadata)
        return expect_tokens(checkpoint.path, config, prompts, frame, first)
    except TokenizerError as error:
        own = error
    found = description.rows.tokenizer()
    if not found.get("fast"):
        why = str(own).rstrip(".") if "class" in found else found["why"]
        lacking = f"no library opens the tokenizer in {checkpoint.path} ({why})."
        return ExpectedTokens("", (), (), lacking=lacking)
    with TemporaryDirectory(prefix="quantkit-tokenizer-") as folder:
        write_file(Path(folder) / FAST, found["fast"].encode())
        try:
            expected = expect_tokens(Path(folder), {**config, "model_type": ""}, prompts, frame)
        except TokenizerError as error:
            return ExpectedTokens("", (), (), lacking=str(error))
    return replace(expected, file=f"{found['class']}")


def check_artifact(
    path: Path, threads: int, memory: int, tokens: "ExpectedTokens | None"
) -> "Check":
    """Run a GGUF in llama.cpp, a folder through a temporary GGUF of its dequantized weights."""
    if path.is_dir():
        return _check_folder(path, threads, memory, tokens)
    return _check_gguf(path, threads, tokens)


def check_projector(path: Path, threads: int, model: "Layout", takes: "Sequence[str]") -> "Check":
    """Load a projector in llama.cpp, with the header of a model that it is for."""
    from quantkit.building.artifact import Check
    from quantkit.verification.projector import smoke_projector

    result = smoke_projector(path, _hollow(model), takes=takes, threads=threads)
    return Check(result.ok, result.verdict, asdict(result))


def _check_gguf(path: Path, threads: int, tokens: "ExpectedTokens | None") -> "Check":
    from quantkit.building.artifact import Check
    from quantkit.verification.smoke import smoke

    result = smoke(path, threads=threads, tokens=tokens)
    return Check(result.ok, result.verdict, asdict(result))


def _check_folder(
    folder: Path, threads: int, memory: int, tokens: "ExpectedTokens | None"
) -> "Check":
    from quantkit.building import engine
    from quantkit.building.output import remove, trial_of
    from quantkit.building.work import prepare_export
    from quantkit.planning.quants import find_quants

    temporary = trial_of(folder)
    remove(temporary)
    try:
        work = prepare_export(folder, find_quants([SMOKE_QUANT]))
        (exported,) = engine.build(work, temporary, jobs=threads, max_memory=memory)
        return _check_gguf(exported.path, threads, tokens)
    finally:
        remove(temporary)


def refuse_other_matrix(matrix: Path) -> None:
    """Refuse an importance matrix that was made from something else.

    Raises:
        OutputError: there is one.

    """
    if matrix.exists():
        raise OutputError(
            f"{matrix} already exists and was made from another model, text or settings; move it "
            "away, choose another folder with -o, or use it with --imatrix."
        )
