"""``fit`` on whatever a user points it at: any width, a config.json, what a build left."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.core.errors import GGUFError, QuantkitError
from quantkit.fitting.subject import PlanOptions, SizedModel, bundled_models, open_subject
from quantkit.fitting.transformers import formats_of
from quantkit.formats.bnb.codec import BnbOptions
from quantkit.formats.bnb.plan import outline_bnb
from quantkit.formats.gptq.plan import GptqOptions, outline_gptq
from quantkit.planning.quants import find_quants, folder_quants
from tests.building.builds import build
from tests.cli.command import quantkit, refusal
from tests.imatrix_writer import write_gguf_imatrix
from tests.parity.cases import TRAINED
from tests.random_checkpoints import config_of, random_checkpoint

MISTRAL = TRAINED / "tiny-mistral"
BOX = ("--gpu", "24GB", "--ram", "32GB")
QUANTS = ("f16", "q4_k_l", "q4_k_m", "bnb-nf4")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build leaves: GGUF files and a folder for transformers, with their manifest."""
    out = tmp_path_factory.mktemp("built")
    build(MISTRAL, out, *QUANTS, check=None)
    return out


def answer(*arguments: object) -> dict[str, Any]:
    outcome = quantkit("fit", *arguments, *BOX, "--json")
    assert outcome.code in (0, None), outcome
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def shapes(folder: Path, hidden: int, wide: int, **changes: Any) -> Path:
    """A config.json alone, of a model with rows of such lengths."""
    folder.mkdir()
    config = config_of("llama", hidden_size=hidden, intermediate_size=wide, **changes)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# --- widths ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "wide", "heads", "group", "block"),
    [
        (576, 1536, 9, 64, 64),  # SmolLM2-135M
        (960, 2560, 15, 64, 64),  # SmolLM2-360M
        (192, 448, 6, 64, 64),
        (96, 352, 6, 32, 32),
        (100, 300, 5, None, None),
        (66, 77, 3, None, None),
        (256, 512, 4, 128, 64),
    ],
)
def test_every_width_has_an_answer(
    tmp_path: Path, hidden: int, wide: int, heads: int, group: int | None, block: int | None
) -> None:
    folder = shapes(
        tmp_path / "model", hidden, wide, num_attention_heads=heads, num_key_value_heads=heads
    )
    found = {other["name"]: other for other in answer(folder)["other_formats"]}
    model = open_subject(str(folder)).model
    assert model is not None
    gptq, nf4 = found["gptq-int4"], found["bnb-nf4"]
    if group is None or block is None:
        assert (gptq["weight_bytes"], nf4["weight_bytes"]) == (None, None)
        assert "multiples of 32" in gptq["note"]
        assert not gptq["fits"]
    else:
        quants = folder_quants()
        options = GptqOptions(group_size=group)
        plan = outline_gptq(model, quants["gptq-int4"], options, {})
        assert gptq["weight_bytes"] == plan.n_bytes
        assert f"groups of {group}" in gptq["note"]
        stored = outline_bnb(model, quants["bnb-nf4"], BnbOptions(block_size=block))
        assert nf4["weight_bytes"] == stored.n_bytes
    assert found["bnb-int8"]["weight_bytes"]
    text = quantkit("fit", folder, *BOX, "-q", "q8_0")
    assert text.code in (0, None)
    assert ("cannot hold it" in text.out) is (group is None)


def test_the_group_size_that_is_named_is_one_that_builds(tmp_path: Path) -> None:
    """As is said to whoever asks for one that does not."""
    folder = random_checkpoint(
        tmp_path / "m", "llama", hidden_size=192, intermediate_size=448, num_attention_heads=6
    )
    sentence = refusal(quantkit("build", folder, "-q", "gptq-int4", "-o", tmp_path / "out"))
    assert "--group-size 128, the default, does not divide the 192 columns" in sentence
    assert "give --group-size 64 or 32, or -1" in sentence
    for size in ("64", "32", "-1"):
        command = ("build", folder, "-q", "gptq-int4", "--group-size", size, "--dry-run")
        assert quantkit(*command).code in (0, None)


# --- a config.json alone -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-mistral", "tiny-mixtral"])
def test_a_config_alone_gives_the_sizes_of_the_checkpoint(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    shutil.copyfile(TRAINED / name / "config.json", folder / "config.json")
    whole = open_subject(str(TRAINED / name))
    for place in (folder, folder / "config.json"):
        alone = open_subject(str(place))
        assert (alone.title, alone.origin, alone.shape) == (name, "config", whole.shape)
        assert [v.tensor_bytes for v in alone.variants] == [v.tensor_bytes for v in whole.variants]
        assert not any(variant.file_is_exact for variant in alone.variants)
    found = quantkit("fit", folder, *BOX, "-q", "q4_k_m")
    assert "a file's header counts an estimated vocabulary" in found.out


def test_an_index_tells_what_a_config_does_not(tmp_path: Path) -> None:
    """A checkpoint that ties its output and stores it nevertheless."""
    folder = random_checkpoint(tmp_path / "m", "llama", tie_word_embeddings=True)
    config = json.loads((folder / "config.json").read_text())
    bare = open_subject(str(folder)).shape, open_subject(str(folder)).n_parameters
    index = {"weight_map": {"lm_head.weight": "model.safetensors"}}
    (folder / "model.safetensors").unlink()
    assert (open_subject(str(folder)).shape, open_subject(str(folder)).n_parameters) == bare
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    output = config["vocab_size"] * config["hidden_size"]
    assert open_subject(str(folder)).n_parameters == bare[1] + output


@pytest.mark.parametrize("name", bundled_models())
def test_bundled_models_are_their_parameters(name: str) -> None:
    """As their publishers count them: profiles/models says where from."""
    from quantkit.core.profiles import load_profile

    profile = load_profile(f"models/{name}.toml")
    model = open_subject(name, PlanOptions(find_quants(["q4_k_m"]))).model
    assert model is not None
    counted = profile.get("parameters") or profile["source"]["tensor_bytes"] // 2
    assert model.n_parameters == counted
    assert all(stored.n_bytes for stored in formats_of(model))


# --- what a build left -------------------------------------------------------------------------


def test_an_output_folder_is_its_artifacts(built: Path) -> None:
    found = answer(built)
    assert [quant["quant"] for quant in found["quants"]] == ["f16", "q4_k_l", "q4_k_m"]
    for quant in found["quants"]:
        [file] = built.glob(f"*{quant['quant'].upper()}.gguf")
        assert quant["file_bytes"] == file.stat().st_size
        assert f"-m {file.name} " in quant["command"]
    [folder] = found["other_formats"]
    assert folder["name"] == "Tiny-Mistral-2.9M-bnb-nf4"
    stored = sum(tensor.n_bytes for tensor in _stored(built / folder["name"]))
    assert folder["weight_bytes"] == stored
    assert found["recommended"] == "q4_k_m"


def _stored(folder: Path) -> Any:
    from quantkit.checkpoint.folder import open_quantized

    return open_quantized(folder).tensors.values()


def test_quants_are_chosen_from_those_that_are_there(built: Path) -> None:
    assert [q["quant"] for q in answer(built, "-q", "q4_k_m")["quants"]] == ["q4_k_m"]
    sentence = refusal(quantkit("fit", built, *BOX, "-q", "q2_k"))
    assert "f16" in sentence
    assert "not as q2_k" in sentence
    file = next(built.glob("*Q4_K_M.gguf"))
    assert "--quant" in refusal(quantkit("fit", file, *BOX, "-q", "q2_k"))
    source = next(built.glob("*F16.gguf"))
    assert [q["quant"] for q in answer(source, "-q", "q2_k")["quants"]] == ["q2_k"]


def test_every_folder_that_is_left_has_an_answer(built: Path, tmp_path: Path) -> None:
    """One of shards, one for transformers, one of GGUF files without their manifest."""
    shards, loose = tmp_path / "shards", tmp_path / "loose"
    command = ("build", MISTRAL, "-q", "q8_0", "--shard-size", "1MB", "--no-smoke", "-o", shards)
    assert quantkit(*command).code in (0, None)
    [folder] = [path for path in shards.iterdir() if path.is_dir()]
    assert len(list(folder.iterdir())) > 1
    loose.mkdir()
    for file in built.glob("*.gguf"):
        shutil.copyfile(file, loose / file.name)
    for place in (shards, folder, loose):
        assert answer(place)["recommended"] in ("q8_0", "q4_k_m")
    found = answer(built / "Tiny-Mistral-2.9M-bnb-nf4")
    assert found["quants"] == []
    assert found["recommended"] is None
    assert "quantkit export" in found["reason"]
    assert found["other_formats"][0]["fits"]
    text = quantkit("fit", built / "Tiny-Mistral-2.9M-bnb-nf4", *BOX)
    assert text.code in (0, None)
    assert "Tiny-Mistral-2.9M-bnb-nf4" in text.out


def test_an_importance_matrix_is_no_model(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copyfile(next(built.glob("*Q4_K_M.gguf")), folder / "a.gguf")
    imatrix = folder / "imatrix.gguf"
    write_gguf_imatrix(imatrix, {"blk.0.attn_q.weight": (np.ones((1, 256)), np.ones(1))})
    assert [quant["quant"] for quant in answer(folder)["quants"]] == ["q4_k_m"]
    assert "importance matrix and no model" in refusal(quantkit("fit", imatrix, *BOX))


def test_two_models_in_one_folder_are_told_apart(built: Path, tmp_path: Path) -> None:
    other = random_checkpoint(tmp_path / "other", "llama")
    [made] = build(other, tmp_path / "mixed", "q8_0", check=None)
    shutil.copyfile(next(built.glob("*F16.gguf")), made.path.with_name("zzz.gguf"))
    (made.path.parent / "quantkit.json").unlink()
    with pytest.raises(GGUFError, match="different models"):
        open_subject(str(made.path.parent))


def test_a_folder_of_neither_kind_is_refused_as_before(tmp_path: Path) -> None:
    with pytest.raises(QuantkitError, match=r"no config\.json"):
        open_subject(str(tmp_path))


def test_a_checkpoint_whose_config_says_too_much_is_a_checkpoint(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "m", "llama")
    config = json.loads((folder / "config.json").read_text())
    whole: SizedModel = open_subject(str(folder))
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(config))
    assert open_subject(str(folder)) == whole
