"""What is stored is what bitsandbytes gives for the whole tensor, and what transformers saves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional

from quantkit.building import engine
from quantkit.building.work import prepare
from quantkit.core.errors import PlanError
from quantkit.formats.bnb.codec import BnbOptions
from quantkit.planning.quants import find_quants
from tests.building.builds import build_work, small_slabs
from tests.formats.bnb.folders import CHECKPOINTS, build_folder, same, stored_tensors
from tests.random_checkpoints import (
    config_of,
    fuse_experts,
    random_checkpoint,
    random_tensors,
    write_tokenizer,
)
from tests.safetensors_writer import write_checkpoint


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """The order of a sum, and so the last bit of a mean, depends on torch's threads."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def expected(
    weights: dict[str, torch.Tensor], quant: str, kept: tuple[str, ...] = (), **options: Any
) -> dict[str, torch.Tensor]:
    """What a folder must hold, by bitsandbytes' own functions on whole tensors."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        module = name.removesuffix(".weight")
        if (not module.endswith("_proj") and ".experts." not in name) or module.endswith(kept):
            found[name] = tensor
        elif quant == "bnb-int8":
            codes, scales, _ = functional.int8_vectorwise_quant(tensor.to(torch.float16))
            found |= {name: codes, f"{module}.SCB": scales}
            found[f"{module}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
        else:
            codes, state = functional.quantize_4bit(
                tensor,
                blocksize=options.get("block_size", 64),
                quant_type=quant.removeprefix("bnb-"),
                compress_statistics=options.get("double_quant", False),
            )
            found[name] = codes
            found |= {f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()}
    return found


def check_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if not same(found[name], wanted[name])] == []


@pytest.mark.parametrize("model", ["tiny-mixtral", "tiny-mistral"])
@pytest.mark.parametrize(
    ("quant", "options"),
    [
        ("bnb-nf4", {}),
        ("bnb-nf4", {"double_quant": True}),
        ("bnb-nf4", {"block_size": 128, "double_quant": True}),
        ("bnb-fp4", {"block_size": 256}),
        ("bnb-int8", {}),
    ],
)
def test_tensors_are_bitsandbytes(
    model: str, quant: str, options: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = CHECKPOINTS / model
    with small_slabs(2**13):  # matrices in several slabs
        folder = build_folder(checkpoint, tmp_path, quant, **options)
    check_same(stored_tensors(folder), expected(stored_tensors(checkpoint), quant, **options))


def test_rows_of_odd_lengths(tmp_path: Path) -> None:
    """Slabs end where heads do, and blocks where rows do; other rows are for int8 alone."""
    checkpoint = random_checkpoint(
        tmp_path / "model", "mistral", hidden_size=96, intermediate_size=160, head_dim=24
    )
    for quant in ("bnb-nf4", "bnb-int8"):
        with small_slabs(1000):
            folder = build_folder(checkpoint, tmp_path / "out", quant, block_size=32)
        wanted = expected(stored_tensors(checkpoint), quant, block_size=32)
        check_same(stored_tensors(folder), wanted)
    with pytest.raises(PlanError, match="does not divide the 96 columns"):
        build_folder(checkpoint, tmp_path / "64", "bnb-nf4")
    assert not (tmp_path / "64").exists()


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_weights_are_cast_to_the_dtype_of_the_model(dtype: str, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "model", "mistral", dtype=dtype)
    weights = {name: t.to(torch.bfloat16) for name, t in stored_tensors(checkpoint).items()}
    for quant in ("bnb-nf4", "bnb-int8"):
        folder = build_folder(checkpoint, tmp_path / "out", quant)
        check_same(stored_tensors(folder), expected(weights, quant))


def test_fused_experts_are_stored_one_by_one(tmp_path: Path) -> None:
    config = config_of("mixtral", intermediate_size=256, num_hidden_layers=1)
    tensors = random_tensors(config)
    folders = []
    for name, weights in (("plain", tensors), ("fused", fuse_experts(tensors, 8))):
        checkpoint = tmp_path / name / "model"
        write_checkpoint(checkpoint, weights, config)
        write_tokenizer(checkpoint)
        folders.append(build_folder(checkpoint, tmp_path / name / "out", "bnb-nf4"))
    plain, fused = (stored_tensors(folder) for folder in folders)
    check_same(fused, plain)
    assert (folders[0] / "model.safetensors").read_bytes() == (
        folders[1] / "model.safetensors"
    ).read_bytes()


def test_kept_modules_and_the_manifest(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS / "tiny-mixtral"
    folder = build_folder(checkpoint, tmp_path, "bnb-nf4", keep=("o_proj", "lm_head"))
    check_same(stored_tensors(folder), expected(stored_tensors(checkpoint), "bnb-nf4", ("o_proj",)))
    (entry,) = json.loads((tmp_path / "quantkit.json").read_text())["artifacts"].values()
    kept = {name for name in entry["unquantized"] if "norm" not in name}
    layers = [f"model.layers.{n}." for n in range(4)]
    assert kept == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        *(f"{layer}self_attn.o_proj.weight" for layer in layers),
        *(f"{layer}block_sparse_moe.gate.weight" for layer in layers),
    }


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize(
    ("quant", "options"),
    [("bnb-nf4", {}), ("bnb-nf4", {"double_quant": True}), ("bnb-fp4", {}), ("bnb-int8", {})],
)
def test_a_dense_folder_is_what_transformers_saves(
    quant: str, options: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    checkpoint = CHECKPOINTS / "tiny-mistral"
    settings: dict[str, Any] = {"load_in_8bit": True}
    if quant != "bnb-int8":
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": quant.removeprefix("bnb-"),
            "bnb_4bit_use_double_quant": options.get("double_quant", False),
            "bnb_4bit_compute_dtype": "bfloat16",
        }
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint,
        quantization_config=transformers.BitsAndBytesConfig(**settings),
        device_map="cpu",
        dtype="auto",
    )
    model.save_pretrained(tmp_path / "saved")
    folder = build_folder(checkpoint, tmp_path / "out", quant, **options)
    check_same(stored_tensors(folder), stored_tensors(tmp_path / "saved"))
    ours, theirs = (
        json.loads((path / "config.json").read_text())["quantization_config"]
        for path in (folder, tmp_path / "saved")
    )
    assert {key: ours.get(key) for key in theirs} == theirs


def test_shards_and_index(tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS / "tiny-mixtral"
    whole = build_folder(checkpoint, tmp_path / "whole", "bnb-nf4", double_quant=True)
    split = build_folder(
        checkpoint, tmp_path / "split", "bnb-nf4", shard_size=10**6, double_quant=True
    )
    assert len(list(split.glob("model-*-of-*.safetensors"))) > 3
    check_same(stored_tensors(split), stored_tensors(whole))
    index = json.loads((split / "model.safetensors.index.json").read_text())
    tensors = stored_tensors(split)
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    for name, file in index["weight_map"].items():
        assert name.encode() in (split / file).read_bytes()


def test_any_jobs_slabs_and_company(tmp_path: Path) -> None:
    """One thread or four, large slabs or small, alone or with others: the same bytes."""
    checkpoint = CHECKPOINTS / "tiny-mixtral"
    options = BnbOptions(double_quant=True)

    def contents(out: Path, quants: list[str], jobs: int) -> dict[str, bytes]:
        work = prepare(checkpoint, find_quants(quants), bnb=options)
        artifacts = build_work(work, out, jobs=jobs)
        (folder,) = (a.path for a in artifacts if a.layout.plan.quant.name == "bnb-nf4")
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    alone = contents(tmp_path / "alone", ["bnb-nf4"], 1)
    with small_slabs(2**13):
        together = contents(tmp_path / "together", ["bnb-nf4", "bnb-int8", "q8_0"], 4)
    assert alone == together


def test_sizes_are_planned(tmp_path: Path) -> None:
    """To the byte, except that double quantization's JSON is up to 22 digits shorter per matrix."""
    for options in (BnbOptions(), BnbOptions(double_quant=True)):
        checkpoint = CHECKPOINTS / "tiny-mixtral"
        work = prepare(checkpoint, find_quants(["bnb-nf4", "bnb-int8"]), bnb=options)
        for artifact in engine.build(
            work, tmp_path / str(options.double_quant), jobs=2, max_memory=2**30
        ):
            files = list(artifact.path.iterdir())
            size = sum(file.stat().st_size for file in files)
            (planned,) = (x.n_bytes for x in work.layouts if x.name == artifact.layout.name)
            n_matrices = 4 * (4 + 24)
            if options.double_quant and artifact.layout.plan.quant.name == "bnb-nf4":
                assert planned - 22 * n_matrices <= size <= planned
            else:
                assert size == planned
            assert not [file for file in files if file.name.startswith(".")]
