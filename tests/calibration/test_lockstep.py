"""A model run layer by layer against transformers' ordinary forward."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quantkit.calibration.lockstep.run import run
from quantkit.calibration.lockstep.squares import Squares
from quantkit.calibration.lockstep.states import States
from quantkit.calibration.lockstep.visitors import Visitors
from quantkit.calibration.routing import Routing
from quantkit.checkpoint.scaled import scaled
from quantkit.core.errors import CalibrationError, CheckpointError
from tests.calibration.small_models import (
    CHUNKS,
    CPU,
    difference,
    opened,
    ordinary_logits,
    ordinary_model,
    small_model,
    some_tokens,
    streamed_logits,
    with_fused_names,
)

# Window and softcap; parallel block; latent attention, grouped routing, shared experts; linear
# attention and a gated shared expert; experts stored transposed, with biases; embeddings per layer.
NAMES = ("gemma2", "command-r", "deepseek2", "qwen3next", "gpt-oss", "gpt-oss-mxfp4", "gemma3n")
MOST = 1e-6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {name: small_model(name, base / name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_ordinary_forwards(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    tokens = some_tokens()
    theirs = ordinary_logits(folders[name], tokens)
    (tmp_path / "states").mkdir()
    assert difference(streamed_logits(folders[name], tokens), theirs) < MOST
    assert difference(streamed_logits(folders[name], tokens, tmp_path / "states"), theirs) < MOST
    fused = with_fused_names(folders[name], tmp_path / "fused")
    assert difference(streamed_logits(fused, tokens), theirs) < MOST


def test_a_layer_is_in_memory_and_of_its_experts_a_matrix(folders: dict[str, Path]) -> None:
    """While any matrix sees its inputs, no other layer has weights, and no expert keeps any."""
    forward = opened(folders["qwen3next"])
    seen = []

    class Looking:
        def observe(
            self, parameter: str, expert: int | None, _chunk: object, _x: Tensor, _share: float = 1
        ) -> None:
            seen.append((parameter, expert))
            real = [name for name, p in forward.model.named_parameters() if not p.is_meta]
            at_hand = next(layer for layer in forward.layers if parameter.startswith(f"{layer}."))
            for name in real:
                assert name.startswith(at_hand) or ".layers." not in name
                assert not name.endswith(("experts.gate_up_proj", "experts.down_proj"))

    tokens = some_tokens()
    states = States(Path(), CHUNKS, CPU, spill=False, durable=False)
    run(forward, tokens, states, None, Visitors(watcher=Looking()))
    assert {expert for _, expert in seen} == {None, 0, 1, 2, 3}
    assert all(parameter.is_meta for parameter in forward.model.parameters())


@pytest.mark.parametrize("name", ["deepseek2", "qwen3next", "gpt-oss", "gpt-oss-mxfp4"])
def test_an_expert_is_a_part_of_the_parameter(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    state = ordinary_model(folders[name]).state_dict()
    for folder in (folders[name], with_fused_names(folders[name], tmp_path / "fused")):
        forward = opened(folder)
        for full in (n for n in state if n.endswith(("experts.gate_up_proj", "experts.down_proj"))):
            assert torch.equal(forward.parameters.load([full])[full], state[full])
            for expert, matrix in enumerate(state[full]):
                assert torch.equal(forward.expert(full, expert), matrix)


@pytest.mark.parametrize("name", ["gemma2", "gpt-oss"])
def test_matrices_see_what_hooks_see(name: str, folders: dict[str, Path]) -> None:
    """Squares and counts of every linear layer, against hooks on the ordinary model."""
    tokens = some_tokens()
    model = ordinary_model(folders[name])
    wanted: dict[str, Tensor] = {}

    def hook(full: str, inputs: Tensor) -> None:
        squares = inputs.reshape(-1, inputs.shape[-1]).double().square().sum(0)
        wanted[full] = wanted.get(full, torch.zeros_like(squares)) + squares

    for full, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in full:
            module.register_forward_pre_hook(
                lambda _module, inputs, full=full: hook(f"{full}.weight", inputs[0])
            )
    with torch.inference_mode():
        for chunk in torch.from_numpy(tokens):
            model(input_ids=chunk[None], use_cache=False)
    forward = opened(folders[name])
    squares = Squares(forward.n_matrices)
    found: dict[str, Any] = {}
    streamed_logits(
        folders[name],
        tokens,
        visitors=Visitors(watcher=squares),
        finish_layer=lambda _layer, _routing: found.update(squares.take()),
    )
    assert wanted.keys() <= found.keys()
    for full, values in wanted.items():
        assert found[full].counts.tolist() == [tokens.size]
        np.testing.assert_allclose(found[full].squares[0], values.numpy(), rtol=1e-5)
    for full, sums in found.items():
        if full.endswith("experts.gate_up_proj"):
            assert sums.counts.sum() == 2 * tokens.size  # each goes to two experts


class _StopError(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "changes", "spill"),
    [
        ("qwen3next", {}, False),
        # The last two layers attend to keys and values of the first two.
        ("gemma3n", {"num_kv_shared_layers": 2}, True),
    ],
)
def test_what_stopped_after_a_layer_goes_on_there(
    name: str, changes: dict[str, Any], spill: bool, tmp_path: Path
) -> None:
    folder = small_model(name, tmp_path / "model", **changes)
    tokens = some_tokens()
    wanted = streamed_logits(folder, tokens)
    n_layers = len(opened(folder).layers)
    for last in range(n_layers):
        work = tmp_path / f"work-{last}"
        work.mkdir()
        crcs: list[int] = []

        def kept(work: Path = work) -> States:
            return States(work, CHUNKS, CPU, spill=spill, durable=True)

        def commit(states: States, stops: bool, crcs: list[int] = crcs, last: int = last) -> Any:
            def finish_layer(layer: int, _routing: object) -> None:
                crcs.append(states.commit())
                states.turn_over()
                if stops and layer == last:
                    raise _StopError

            return finish_layer

        states = kept()
        with pytest.raises(_StopError):
            run(
                opened(folder),
                tokens,
                states,
                lambda _number, _logits: None,
                finish_layer=commit(states, stops=True),
            )
        states, found = kept(), dict[int, Tensor]()
        states.resume(last + 1, crcs[-1])
        run(
            opened(folder),
            tokens,
            states,
            found.__setitem__,
            finish_layer=commit(states, stops=False),
            resumed=last + 1,
        )
        assert len(crcs) == n_layers
        assert all(torch.equal(found[chunk], wanted[chunk]) for chunk in range(CHUNKS))


def test_weights_that_are_not_finite_stop_it(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in folders["gemma2"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("inf")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CalibrationError, match=r"model\.layers\.1\.mlp\.up_proj.*in layer 1"):
        streamed_logits(folder, some_tokens())


def test_a_tensor_that_is_missing_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "lacking"
    folder.mkdir()
    (folder / "config.json").write_bytes((folders["gemma2"] / "config.json").read_bytes())
    tensors = load_file(folders["gemma2"] / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks .*layers\.1\.mlp\.up_proj"):
        opened(folder)


def test_code_that_comes_with_a_model_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "coded"
    folder.mkdir()
    for file in folders["gemma2"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": classes}))
    opened(folder)
    (folder / "config.json").write_text(
        json.dumps({**config, "auto_map": classes, "model_type": "own"})
    )
    with pytest.raises(CalibrationError, match="no model of the type"):
        opened(folder)
    assert not (tmp_path / "ran").exists()


# Whose experts do not ask for a function to run them.
OWN = ("llama4", "dbrx", "jetmoe", "longcat", "step3p7")


@pytest.mark.parametrize("name", [*OWN, "doge"])
def test_experts_of_classes_that_run_them_themselves(name: str, tmp_path: Path) -> None:
    """Logits are the ordinary forward's, no expert's matrix stays, and each sees its tokens."""
    folder = small_model(name, tmp_path / "model")
    tokens = some_tokens()
    theirs = ordinary_logits(folder, tokens)
    forward = opened(folder)
    squares = Squares(forward.n_matrices)
    counts: dict[str, float] = {}

    class Looking:
        def observe(
            self,
            parameter: str,
            expert: int | None,
            chunk: int | None,
            x: Tensor,
            share: float = 1.0,
        ) -> None:
            squares.observe(parameter, expert, chunk, x, share)
            real = {name for name, p in forward.model.named_parameters() if not p.is_meta}
            for within, some in forward.experts.items():
                assert not real & {f"{within}.{own}" for own in some.matrices}
            assert not real & {f"{within}.weight" for within in forward.tables}

    def finish_layer(_layer: int, _routing: Routing | None) -> None:
        counts.update({name: sums.counts.sum() for name, sums in squares.take().items()})

    found: dict[int, Tensor] = {}
    states = States(Path(), CHUNKS, CPU, spill=False, durable=False)
    run(
        forward,
        tokens,
        states,
        found.__setitem__,
        Visitors(watcher=Looking()),
        finish_layer=finish_layer,
    )
    assert difference([found[chunk] for chunk in range(CHUNKS)], theirs) < MOST
    chosen = {"llama4": 1, "longcat": 3}.get(name, 2) * tokens.size
    streamed = [
        counts[f"{within}.{own}"]
        for within, some in forward.experts.items()
        for own in some.matrices
    ]
    if name == "longcat":  # some tokens go to experts that have no matrices
        assert all(0 < count < chosen for count in streamed)
    else:
        assert streamed == [chosen] * len(streamed)
    assert streamed or name == "doge"  # whose experts are rows of a table
    if name in OWN:
        fused = with_fused_names(folder, tmp_path / "fused")
        assert difference(streamed_logits(fused, tokens), theirs) < MOST


def test_no_decoders_experts_are_in_memory_all_at_once() -> None:
    """They ask for a function to run them, or quantkit knows their class.

    Bamba has none, for all that it speaks of them, and Doge's are rows of embeddings.
    """
    from transformers.models.auto import configuration_auto, modeling_auto

    from quantkit.calibration.lockstep.own_experts import KINDS

    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    models = Path(spec.submodule_search_locations[0]) / "models"
    kinds = {
        *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    found: dict[str, set[str]] = {"own": set(), "without": set()}
    for folder in {configuration_auto.model_type_to_module_name(kind) for kind in kinds}:
        for file in (models / folder).glob("modeling_*.py"):
            text = file.read_text()
            has_experts = re.search(r"num_(local_|routed_)?experts\b|moe_num_experts", text)
            if has_experts and "use_experts_implementation" not in text:
                known = any(f"class {kind}(" in text for kind in KINDS)
                found["own" if known else "without"].add(folder)
    assert found["without"] <= {"bamba", "doge"}
    assert found["own"] >= {"dbrx", "jetmoe", "llama4", "longcat_flash", "step3p7"}


def test_scales_of_blocks_of_which_the_last_is_cut_off() -> None:
    from tests.architectures.forms import spread

    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(3, 200, 150, generator=generator)
    for scales, block in (
        (torch.rand(3, 2, 2, generator=generator), (128, 128)),
        (torch.rand(3, 7, 3, generator=generator), (32, 64)),
    ):
        wide = torch.stack([spread(s, *block, weights.shape[1:]) for s in scales])
        assert torch.equal(scaled(weights, scales, block), weights * wide)
    row = torch.rand(3, 200, 1, generator=generator)
    assert torch.equal(scaled(weights, row, (128, 128)), weights * row)
    assert torch.equal(scaled(weights, torch.tensor(0.5), None), weights / 2)
    with pytest.raises(ValueError, match="3 scales"):
        scaled(weights[0], torch.rand(3, 2), (128, 128))


def test_fp8_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    """In bfloat16, to which transformers rounds a weight times its scale."""
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    from tests.architectures.make import make_checkpoint

    folder = tmp_path / "qwen35-fp8"
    make_checkpoint(folder.name, folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        quantization_config=FineGrainedFP8Config(dequantize=True),
    )
    state = model.state_dict()
    found = opened(folder).parameters.load(list(state))
    for name, values in state.items():
        assert torch.equal(found[name].to(values.dtype), values), name
