"""Options that would do nothing are refused, before anything has been opened."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.api.needs import BUILD, CALIBRATE, Need
from quantkit.cli import build, calibrate, densify, needs, perplexity
from tests.building.builds import build as build_quants
from tests.calibration.runs import TINY
from tests.cli.command import quantkit, refusal
from tests.imatrix_writer import write_gguf_imatrix

Words = tuple[str, ...]

# Options of quantkit build, as they would be typed.
CALIBRATION: tuple[Words, ...] = (
    ("--text", "absent.txt"),
    ("--chat", "absent.jsonl"),
    ("--chunks", "4"),
    ("--context", "64"),
    ("--device", "cpu"),
)
GPTQ: tuple[Words, ...] = (
    ("--group-size", "64"),
    ("--desc-act",),
    ("--no-desc-act",),
    ("--sym",),
    ("--asym",),
    ("--damp", "0.1"),
    ("--scale-search",),
    ("--no-scale-search",),
)
BNB_4_BIT: tuple[Words, ...] = (
    ("--double-quant",),
    ("--no-double-quant",),
    ("--block-size", "128"),
)
BNB: tuple[Words, ...] = (("--keep", "lm_head"),)
GGUF: tuple[Words, ...] = (
    ("--mmproj", "none"),
    ("--prove",),
    ("--kernel", "ggml"),
    ("--output-tensor-type", "q8_0"),
    ("--token-embedding-type", "q8_0"),
)
BLOCKS: tuple[Words, ...] = (
    ("--tensor-type", "attn_v=q8_0"),
    ("--imatrix", "absent.gguf"),
    ("--imatrix", "auto"),
)
SEARCHED: tuple[Words, ...] = (("--search", "best"), ("--search", "ggml"))
RULES: tuple[Words, ...] = (
    ("--tensor-type", "attn_v=q8_0"),
    ("--output-tensor-type", "q8_0"),
    ("--token-embedding-type", "q8_0"),
)
MEASURED: tuple[Words, ...] = (
    ("--measured", "absent.json"),
    ("--types", "q4_k"),
    ("--no-floor", "all"),
    ("--compare",),
    ("--no-compare",),
    ("--compare-text", "absent.txt"),
)
PUBLISHING: tuple[Words, ...] = (
    ("--delete-published",),
    ("--private",),
    ("--license", "mit"),
    ("--base-model", "a/b"),
    ("--max-disk", "1GB"),
    ("--cluster-jobs", "2"),
)


def pairs(given: Words, *idle: Iterable[Words]) -> list[tuple[Words, Words]]:
    return [(given, option) for option in itertools.chain(*idle)]


# What is asked for, and an option that does nothing there.
BUILDS: list[tuple[Words, Words]] = [
    *pairs(("-q", "q4_k_m"), CALIBRATION, GPTQ, BNB_4_BIT, BNB, PUBLISHING, MEASURED),
    *pairs(("--recipe", "absent.toml"), CALIBRATION, GPTQ, RULES, MEASURED),
    *pairs(("--bpw", "4", "--no-compare"), [("--compare-text", "absent.txt")]),
    *pairs(("--bpw", "4"), CALIBRATION, BNB_4_BIT, BNB, RULES, PUBLISHING),
    *pairs(("--recipe", "absent.toml", "-q", "bnb-nf4"), RULES, MEASURED),
    *pairs(("-q", "q4_k_m", "--imatrix", "absent.gguf"), CALIBRATION),
    *pairs(("-q", "q8_0", "--no-smoke"), [("--prove",)]),
    *pairs(("-q", "q8_0"), SEARCHED, CALIBRATION, [("--imatrix", "auto")]),
    *pairs(("-q", "mxfp4_moe"), SEARCHED, [("--imatrix", "auto")]),
    *pairs(("-q", "q8_0", "--token-embedding-type", "tq2_0"), SEARCHED, [("--imatrix", "auto")]),
    *pairs(("-q", "q6_k_l", "--token-embedding-type", "f16"), [("--output-tensor-type", "f16")]),
    *pairs(("-q", "q8_0", "--tensor-type", "attn_v=iq3_s"), SEARCHED),  # without importance
    *pairs(("-q", "f16"), SEARCHED, BLOCKS, CALIBRATION),
    *pairs(("-q", "f32", "-q", "bf16"), SEARCHED, BLOCKS),
    *pairs(("-q", "bnb-nf4"), CALIBRATION, GPTQ, GGUF, SEARCHED, BLOCKS),
    *pairs(("-q", "bnb-int8"), BNB_4_BIT),
    *pairs(("-q", "bnb-int8", "-q", "f16"), BNB_4_BIT, SEARCHED, BLOCKS),
    *pairs(("-q", "gptq-int4"), BNB_4_BIT, BNB, GGUF, SEARCHED, BLOCKS, [("--cluster", "local")]),
    *pairs(("-q", "q8_0", "--cluster", "auto"), [("--keep-source", "kept")]),
    *pairs(("-q", "q8_0", "--publish", "a/b"), [("--max-disk", "1GB"), ("--cluster-jobs", "2")]),
]
OTHERS: list[tuple[Words, Words]] = [
    *pairs(
        ("calibrate", "absent", "--random-tokens"),
        [("--text", "absent.txt"), ("--chat", "a.jsonl")],
    ),
    *pairs(
        ("densify", "absent", "-o", "out", "--expert", "0"),
        CALIBRATION,
        [("--weights", "1,1"), ("--rounds", "1")],
    ),
    *pairs(
        ("densify", "absent", "-o", "out", "--merge", "linear"), CALIBRATION, [("--rounds", "1")]
    ),
    *pairs(
        ("densify", "absent", "-o", "out", "--merge", "routed"),
        [("--weights", "1,1"), ("--rounds", "1")],
    ),
    *pairs(("densify", "absent", "-o", "out", "--merge", "fit"), [("--weights", "1,1")]),
    *pairs(
        ("perplexity", "absent.gguf"),
        [("--device", "cpu"), ("--experts",)],
    ),
    *pairs(("perplexity", "absent"), [("--jobs", "2")]),
    *pairs(("perplexity", "absent", "absent.gguf"), [("--experts",)]),
    *pairs(
        ("publish", "absent", "--repo", "a/b", "--card-only"),
        [("--sign", "absent.pem"), ("--private",)],
    ),
    *pairs(("fit", "absent"), [("-q", "bnb-nf4")]),
]


def plain(option: str) -> str:
    """An option as it is called where it is not turned off."""
    return option if option == "--no-floor" else option.replace("--no-", "--")


def label(words: Words) -> str:
    return " ".join(words)


@pytest.mark.parametrize(("given", "option"), BUILDS, ids=label)
def test_an_option_that_a_build_would_not_use(
    given: Words, option: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is not there: nobody has looked for it when the option is refused."""
    check(("build", "absent", "-o", "out", *given), option, tmp_path, monkeypatch)
    if given == ("-q", "q4_k_m"):
        check(("build", "absent", "-o", "out", "--dry-run", *given), option, tmp_path, monkeypatch)


@pytest.mark.parametrize(("given", "option"), OTHERS, ids=label)
def test_an_option_that_another_command_would_not_use(
    given: Words, option: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(given, option, tmp_path, monkeypatch)


def check(given: Words, option: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = refusal(quantkit(*given, *option))
    name = {"-q": "--quant"}.get(option[0], plain(option[0]))
    assert sentence.startswith((f"{name} ", f"{name}/")) or f"/{name} " in sentence, sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option", [("-q", "q8_0"), ("--shard-size", "1GB"), ("--imatrix", "absent.gguf")], ids=label
)
def test_what_is_for_a_source_alone(option: Words, tmp_path: Path) -> None:
    """Only the header tells that a GGUF is quantized; absent files come before it."""
    (small,) = build_quants(TINY / "tiny-mistral", tmp_path, "q8_0")
    if option[0] == "--imatrix":
        matrix = write_gguf_imatrix(tmp_path / "m.gguf", {"x": (np.ones((1, 32)), np.ones(1))})
        option = ("--imatrix", str(matrix))
    sentence = refusal(quantkit("fit", small.path, *option))
    name = {"-q": "--quant"}.get(option[0], option[0])
    assert sentence.startswith(f"{name} is for what can be built, and a quantized GGUF is")


@pytest.mark.parametrize(("option", "value"), [("--min-tokens", "3"), ("--plot", "routing.png")])
def test_what_is_for_experts_alone(
    option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only config.json tells whether there are any; no text has been read then."""
    monkeypatch.chdir(tmp_path)
    wish = ("--text", "absent.txt", option, value)
    sentence = refusal(quantkit("calibrate", TINY / "tiny-mistral", *wish))
    assert sentence.startswith(f"{option} ")
    sentence = refusal(quantkit("calibrate", TINY / "tiny-mixtral", *wish))
    assert "absent.txt does not exist" in sentence


TABLES: dict[str, tuple[Sequence[Need[Any]], Callable[..., None]]] = {
    "build": (BUILD, build.build),
    "calibrate": (CALIBRATE, calibrate.calibrate),
    "densify": (needs.DENSIFY, densify.densify),
    "perplexity": (needs.PERPLEXITY, perplexity.perplexity),
}


@pytest.mark.parametrize("command", TABLES)
def test_every_row_of_every_table_is_tested(command: str) -> None:
    table, function = TABLES[command]
    rows = {name for need in table for name in need.option.split()[0].split("/")}
    typed = {option[0].replace("-q", "--quant") for given, option in OTHERS if given[0] == command}
    if command == "build":
        typed = {plain(option[0]) for _, option in BUILDS}
    if command == "calibrate":
        typed |= {"--min-tokens", "--plot"}
        typed |= {"--device", "--max-memory", "--random-tokens", "--gpu-layers"}  # by test_gguf_*
    assert rows == typed
    names = inspect.signature(function).parameters
    assert {need.parameter for need in table} <= names.keys()


@pytest.mark.parametrize(
    ("quants", "options"),
    [
        ("q4_k_m", ["--search", "best", "--kernel", "fast", "--tensor-type", "attn_v=q8_0"]),
        ("q4_0", ["--search", "best", "--jobs", "2", "--max-memory", "1GiB"]),
        ("q8_0", ["--tensor-type", "attn_v=q4_k", "--search", "best"]),
        ("f16", ["--output-tensor-type", "q6_k", "--search", "best"]),
        ("q6_k_l", ["--output-tensor-type", "f16"]),
        ("bnb-nf4", ["--block-size", "128", "--double-quant", "--keep", "lm_head"]),
        ("gptq-int4", ["--chunks", "2", "--group-size", "64", "--asym", "--damp", "0.1"]),
        ("gptq-int4 q8_0", ["--no-desc-act", "--kernel", "ggml", "--context", "64"]),
    ],
)
def test_an_option_that_is_used_is_taken(quants: str, options: list[str], tmp_path: Path) -> None:
    wish = [word for quant in quants.split() for word in ("-q", quant)]
    done = quantkit("build", TINY / "tiny-mistral", *wish, *options, "--dry-run", "-o", tmp_path)
    assert done.code == 0, done


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["attn_norm=q8_0"], "blk.0.attn_norm.weight"),
        (["attn_.=q8_0", "attn_v=q6_k"], "blk.0.attn_v.weight"),
    ],
)
def test_a_tensor_type_that_changes_nothing(options: list[str], names: str) -> None:
    wish = [word for option in options for word in ("--tensor-type", option)]
    done = quantkit("build", TINY / "tiny-mistral", "-q", "q4_k_m", *wish, "--dry-run")
    sentence = refusal(done)
    assert "changes nothing" in sentence
    assert names in sentence
