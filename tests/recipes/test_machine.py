"""The best file for a machine: placed as `fit` places it, with next to nothing left over."""

import time

import pytest

from quantkit.core.errors import PlanError, QuantkitError
from quantkit.fitting.hardware import Machine
from quantkit.fitting.memory import total
from quantkit.fitting.placement import place
from quantkit.fitting.probe import Curve, Held, Probe
from quantkit.fitting.settings import ContextSettings
from quantkit.fitting.subject import PlanOptions, SizedModel, open_subject
from quantkit.fitting.verdict import needs_at
from quantkit.recipes.assumed import assume
from quantkit.recipes.candidates import quantizable
from quantkit.recipes.find import Freedom, RecipeSearch
from quantkit.recipes.machine import Found, MachineSearch, parse_machine

WISHES = PlanOptions(())
MIB, GIB = 2**20, 2**30


def curve_of(subject: SizedModel) -> Curve:
    """What llama.cpp would say, about: nothing is probed here."""
    settings = ContextSettings(8192)
    caches = (Held(2 * GIB, 8192, ()),)
    probes = Probe(cells=8192, caches=caches, compute=400 * MIB, output=MIB)
    return Curve(subject.shape, settings, (probes,))


def search_of(subject: SizedModel, machine: Machine) -> MachineSearch:
    source = subject.buildable
    assert source is not None
    search = RecipeSearch(
        source.model,
        source.metadata,
        assume(quantizable(source.model), source.model.arch, source.model.facts),
        vocabulary_bytes=source.vocabulary_bytes,
        freedom=Freedom(unquantized=False),
    )
    return MachineSearch(search, source, WISHES, curve_of(subject), machine)


@pytest.fixture(scope="module")
def mixtral() -> SizedModel:
    return open_subject("mixtral-8x22b", WISHES)


def found_for(subject: SizedModel, text: str) -> tuple[Found, Machine]:
    machine = parse_machine(text)
    return search_of(subject, machine).best(), machine


def test_mixtral_8x22b_fills_24_and_32_gb(mixtral: SizedModel) -> None:
    begun = time.process_time()  # time: bounded from above, and far away
    found, machine = found_for(mixtral, "24GB + 32GB")
    assert time.process_time() - begun < 10  # time: it takes a tenth
    assert found.placement is not None
    assert found.placement.mode == "experts"
    assert found.share_used(machine) >= 0.97
    # The placement is what `fit` would say of the file.
    needs = needs_at(found.variant, curve_of(mixtral), 8192)
    assert place(needs, machine, found.variant.file_bytes) == found.placement
    assert total(found.placement.parts, "RAM") <= machine.ram
    assert total(found.placement.parts, "GPU 0") <= machine.gpus[0].usable


def test_a_better_place_is_better_than_more_bits_from_4_bits_on() -> None:
    subject = open_subject("mistral-small-24b", WISHES)
    whole, _ = found_for(subject, "24GB + 64GB")
    assert whole.placement is not None
    assert whole.placement.mode == "gpu"
    assert 4 <= whole.variant.bits_per_weight < 8
    # With too little for 4 bits, all memory counts.
    spread, machine = found_for(subject, "12GB + 32GB")
    assert spread.placement is not None
    assert spread.placement.mode == "layers"
    assert spread.variant.bits_per_weight > 4
    assert spread.share_used(machine) < 1


def test_more_memory_than_it_needs_gives_q8_0() -> None:
    subject = open_subject("mistral-7b", WISHES)
    found, _ = found_for(subject, "80GB + 64GB")
    assert set(found.recipe.types.values()) == {"Q8_0"}
    alone, _ = found_for(subject, "0 + 8GB")
    assert alone.placement is not None
    assert alone.placement.mode == "ram"


def test_too_little_memory_is_said(mixtral: SizedModel) -> None:
    with pytest.raises(PlanError, match=r"does not fit on 8GB GPU \+ 16GB RAM: .* are missing"):
        found_for(mixtral, "8GB + 16GB")


@pytest.mark.parametrize("text", ["24GB", "", "+", "24GB +", "+ 32GB", "a + b", "24GB + 32 bits"])
def test_what_is_no_machine_is_refused(text: str) -> None:
    with pytest.raises(QuantkitError):
        parse_machine(text)


def test_machines_by_name() -> None:
    assert parse_machine("rtx-4090 + 64GB").gpus[0].usable > 20 * GIB
    assert parse_machine("24GB + 24GB + 64GB").vram == 48 * GIB
    assert parse_machine("0 + 32GB").gpus == ()
