"""``quantkit fit`` as people call it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from quantkit.fitting.subject import bundled_models
from quantkit.planning.quants import all_quants
from tests.building.builds import build
from tests.cli.command import quantkit, refusal
from tests.measured import measure
from tests.parity.cases import TRAINED

GIB = 2**30
BOX = ("--gpu", "24GB", "--ram", "32GB")

# Runs command lines with an ear on imports and on the network, in a process of their own.
GUARDED = """
import json, sys
heavy, network = set(), []
def hear(event, args):
    if event == "import" and args[0].partition(".")[0] in ("torch", "transformers"):
        heavy.add(args[0])
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        network.append(args)
sys.addaudithook(hear)
from quantkit.cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["quantkit", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (arguments, stop.code)
    assert not heavy, (arguments, heavy)
    assert not network, (arguments, network)
"""


def numbers(*arguments: object) -> dict[str, Any]:
    outcome = quantkit("fit", *arguments, "--json")
    assert outcome.code in (0, None), outcome
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def quant_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    quant: dict[str, Any] = next(q for q in found["quants"] if q["quant"] == name)
    return quant


def in_device(quant: dict[str, Any], device: str) -> int:
    return sum(part["bytes"] for part in quant["memory"] if part["device"].startswith(device))


def guarded(*commands: tuple[str, ...]) -> list[str | Path]:
    return [sys.executable, "-c", GUARDED, json.dumps(commands)]


# --- the verdicts ----------------------------------------------------------------------------


def test_mixtral_8x22b_does_not_fit_where_its_page_says() -> None:
    found = numbers("mixtral-8x22b", *BOX, "--documented")
    q4 = quant_of(found, "q4_k_m")
    assert round(q4["tensor_bytes"] / 2**20) == 81_626
    assert not q4["fits"]
    assert q4["mode"] == "disk"
    # What GPU and RAM lack together; a little more, because layers are not divided.
    everything = in_device(q4, "GPU") + in_device(q4, "RAM")
    assert in_device(q4, "RAM") - 30 * GIB == q4["short"]
    assert everything - 54 * GIB <= q4["short"] < everything - 54 * GIB + 2 * GIB
    vram, ram, parameters, context, versions, dense_vram, dense_ram = found["documented"]
    assert not vram["holds"]
    assert vram["needed"] == q4["vram_for_whole"] == vram["short"] + 24 * GIB
    assert not ram["holds"]
    assert ram["short"] == q4["short"]
    assert "64 GB of RAM would be enough" in ram["computed"]
    assert (parameters["holds"], context["holds"], versions["holds"]) == (False, True, True)
    assert "141B" in parameters["computed"]
    assert dense_vram["model"] == dense_ram["model"] == "mistral-22b"
    assert dense_vram["holds"]
    assert dense_ram["holds"]


def test_what_is_said_to_be_enough_is_enough() -> None:
    enough = numbers("mixtral-8x22b", "-q", "q4_k_m", "--gpu", "24GB", "--ram", "64GB")
    assert quant_of(enough, "q4_k_m")["mode"] == "experts"
    short = numbers("mixtral-8x22b", "-q", "q4_k_m", "--gpu", "24GB", "--ram", "48GB")
    assert not quant_of(short, "q4_k_m")["fits"]
    whole = quant_of(short, "q4_k_m")["vram_for_whole"]
    exact = numbers("mixtral-8x22b", "-q", "q4_k_m", "--gpu", str(whole), "--ram", "32GB")
    assert quant_of(exact, "q4_k_m")["mode"] == "gpu"


def test_mistral_22b_fits() -> None:
    found = numbers("mistral-22b", *BOX, "--documented")
    q4 = quant_of(found, "q4_k_m")
    assert round(q4["tensor_bytes"] / 2**20) == 12_716
    assert q4["mode"] == "gpu"
    assert q4["spare"] == 24 * GIB - in_device(q4, "GPU") > 0
    assert quant_of(found, found["recommended"])["mode"] == "gpu"
    assert [claim["holds"] for claim in found["documented"] if claim["model"] == "mistral-22b"] == [
        True,
        True,
    ]


def test_the_usual_question_is_answered_quickly_offline_and_in_little_memory() -> None:
    command = guarded(("fit", "mixtral-8x22b", *BOX))
    cost, numpy = measure(command), measure([sys.executable, "-c", "import numpy"])
    # Processor time, beside that of something well known on the same machine. Measured: eight
    # times. Alone it takes no longer by the clock: its steps wait for each other.
    assert cost.cpu_seconds < 25 * numpy.cpu_seconds
    assert cost.peak_memory < 200 * 10**6
    text = cost.output
    first, why, *_ = text.splitlines()
    assert first == "Mixtral-8x22B on 24GB GPU + 32GB RAM: iq2_m, 46.7 GB."
    assert "The best that fits with its experts partly in RAM" in why


# --- output ----------------------------------------------------------------------------------


def test_the_table_has_every_quant_largest_first() -> None:
    found = numbers("mistral-7b", "--gpu", "8GB", "--ram", "16GB")
    sizes = [quant["tensor_bytes"] for quant in found["quants"]]
    assert sizes == sorted(sizes, reverse=True)
    assert {quant["quant"] for quant in found["quants"]} == set(all_quants())
    assert {other["name"] for other in found["other_formats"]} == {
        "fp16", "bnb-int8", "bnb-nf4", "gptq-int4",
    }  # fmt: skip
    text = quantkit("fit", "mistral-7b", "--gpu", "8GB", "--ram", "16GB", "--all").out
    rows = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert set(all_quants()) <= set(rows)


def test_the_answer_comes_first_and_then_what_is_worth_choosing() -> None:
    text = quantkit("fit", "mistral-7b", "--gpu", "8GB", "--ram", "16GB").out
    first, why, loss, get, run, *rest = text.splitlines()
    assert first == "Mistral-7B on 8GB GPU + 16GB RAM: q6_k, 5.94 GB."
    assert why.startswith("  The best that fits whole in VRAM with 8,192 tokens of context, ")
    assert why.endswith("iB to spare.")
    assert loss == "  Mean KLD 0.0055 (published for Llama 3 8B on WikiText-2)."
    assert get == "  quantkit build mistralai/Mistral-7B-v0.1 --name Mistral-7B -q q6_k"
    assert run.startswith("  llama-server -m Mistral-7B-GGUF/Mistral-7B-Q6_K.gguf -c 8192 ")
    rows = {line.split()[0] for line in rest if line.strip()} & all_quants().keys()
    assert {"q8_0", "q6_k", "q5_k_m", "q4_k_m"} <= rows
    assert len(rows) <= 10
    assert not {"q4_0", "q4_1", "q5_0", "q5_1", "tq2_0"} & rows  # beaten, or for special models
    assert "more quants with --all" in text


def test_commands_name_the_file_and_the_offload() -> None:
    found = numbers("mixtral-8x22b", "--gpu", "24GB", "--ram", "64GB", "--kv-type", "q8_0")
    q4 = quant_of(found, "q4_k_m")
    words = q4["command"].split()
    assert words[:3] == ["llama-server", "-m", "Mixtral-8x22B-Q4_K_M.gguf"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options == {
        "-c": "8192", "-np": "1", "-ngl": "57", "--n-cpu-moe": str(q4["n_cpu_moe"]),
        "-fa": "on", "-ctk": "q8_0", "-ctv": "q8_0",
    }  # fmt: skip
    two = numbers("mistral-22b", "-q", "q6_k", "--gpu", "12GB", "--gpu", "12GB", "--ram", "32GB")
    counts = quant_of(two, "q6_k")["layers_per_gpu"]
    assert f"--tensor-split {counts[0]},{counts[1]}" in quant_of(two, "q6_k")["command"]


def test_the_longest_context_fits_and_the_next_does_not() -> None:
    first = quant_of(numbers("mistral-22b", "-q", "q6_k", *BOX), "q6_k")
    longest = first["longest_context"]
    assert 8192 < longest < 65536
    at = quant_of(numbers("mistral-22b", "-q", "q6_k", *BOX, "--context", longest), "q6_k")
    beyond = quant_of(numbers("mistral-22b", "-q", "q6_k", *BOX, "--context", longest + 1), "q6_k")
    assert (at["mode"], beyond["mode"]) == ("gpu", "layers")


def test_a_smaller_cache_type_takes_less() -> None:
    sizes = []
    for kv_type in ("f16", "q8_0", "q4_0"):
        found = numbers("mistral-7b", "-q", "q4_k_m", *BOX, "--kv-type", kv_type, "--parallel", "2")
        parts = quant_of(found, "q4_k_m")["memory"]
        sizes.append(sum(part["bytes"] for part in parts if part["part"] == "KV cache"))
    assert sizes == [2 * GIB, 2 * GIB * 34 // 64, 2 * GIB * 18 // 64]


def test_few_quants_are_shown_part_by_part() -> None:
    text = quantkit("fit", "mixtral-8x22b", "-q", "q4_k_m", *BOX).out
    for word in ("exact", "probed", "modelled", "borrowed weights", "to download to build it"):
        assert word in text
    assert "64 GB of RAM beside the GPU" in text


def test_a_profile_and_this_machine() -> None:
    profile = numbers("mistral-7b", "-q", "q4_k_m", "--hardware", "2x-rtx-3090")["machine"]
    assert [gpu["usable"] for gpu in profile["gpus"]] == [24 * GIB] * 2
    more = numbers("mistral-7b", "-q", "q4_k_m", "--hardware", "2x-rtx-3090", "--ram", "16GB")
    assert more["machine"]["usable_ram"] == 15 * GIB
    assert len(more["machine"]["gpus"]) == 2
    here = numbers("mistral-7b", "-q", "q4_k_m")["machine"]
    assert here["usable_ram"] > 0
    assert here["free_disk"] > 0


def test_a_folder_and_a_gguf(tmp_path: Path) -> None:
    (artifact,) = build(TRAINED / "tiny-mixtral", tmp_path, "q4_k_m")
    of_folder = numbers(TRAINED / "tiny-mixtral", "-q", "q4_k_m", *BOX)
    of_file = numbers(artifact.path, *BOX)
    assert of_folder["context"] == of_file["context"] == 512
    for found in (of_folder, of_file):
        quant = quant_of(found, "q4_k_m")
        assert quant["file_bytes"] == artifact.path.stat().st_size
        assert quant["file_bytes_label"] == "exact"
        assert quant["download_to_build"] == 0
    memory = [quant_of(found, "q4_k_m")["memory"] for found in (of_folder, of_file)]
    assert memory[0] == memory[1]


def test_a_plot(tmp_path: Path) -> None:
    file = tmp_path / "memory.png"
    outcome = quantkit("fit", "mixtral-8x22b", *BOX, "--plot", file)
    assert outcome.code in (0, None)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size > 10_000
    assert "cannot be drawn" in refusal(
        quantkit("fit", "mistral-7b", *BOX, "--plot", tmp_path / "memory.odd")
    )


# --- nonsense --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "mixtral-8x22b"),
        (("mixtral",), "There is no model 'mixtral'; give a folder"),
        (("mixtral-8x22",), "did you mean mixtral-8x22b?"),
        (("Mistral_7B",), "did you mean mistral-7b?"),
        (("mistral-7b", "--gpu", "24XB"), "'24XB' is not a size"),
        (("mistral-7b", "--gpu", "-24GB"), "'-24GB' is not a size"),
        (("mistral-7b", "--ram", "0GB"), "is not a size above zero"),
        (("mistral-7b", "--kv-type", "q8_0", "--no-flash-attn"), "needs flash attention"),
        (("mistral-7b", "--hardware", "abacus"), "no hardware profile 'abacus'"),
        (("mistral-7b", "-q", "q4_k_x"), "There is no quant 'q4_k_x'"),
        ((__file__,), "is not a sound GGUF file"),
        (("nothing.gguf",), "does not exist"),
    ],
)
def test_nonsense_is_refused(arguments: tuple[str, ...], words: str) -> None:
    assert words in refusal(quantkit("fit", *arguments))


@pytest.mark.parametrize(
    "arguments", [("--context", "0"), ("--kv-type", "q9"), ("--parallel", "0")]
)
def test_nonsense_that_the_parser_refuses(arguments: tuple[str, ...]) -> None:
    outcome = quantkit("fit", "mistral-7b", *arguments)
    assert outcome.code == 2
    assert outcome.out == ""


def test_a_context_above_the_models_is_answered_with_a_warning() -> None:
    outcome = quantkit("fit", "mistral-7b", "-q", "q4_k_m", *BOX, "--context", "65536")
    assert outcome.code in (0, None)
    assert "A context of 65,536 is above the 32,768 tokens" in outcome.err
    assert "65,536 tokens" in outcome.out


def test_no_claims_are_known_of_most_models() -> None:
    outcome = quantkit("fit", "mistral-7b", "-q", "q4_k_m", *BOX, "--documented")
    assert "No documented requirements" in outcome.err


# --- imports ---------------------------------------------------------------------------------


def test_nothing_heavy_is_imported_and_no_host_is_asked() -> None:
    models = [("fit", name, *BOX) for name in bundled_models()[::4]]
    assert len(models) > 3
    measure(guarded(("fit", "--help"), *models))
