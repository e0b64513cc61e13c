"""Cards: the same as ever, valid, nothing invented, and hostile text stays text."""

import copy
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantkit.core.units import format_count, format_size
from quantkit.planning.quants import searched_quant
from quantkit.publishing.card import Facts, render_card
from quantkit.publishing.metadata import SourceFacts
from quantkit.publishing.prompt import render_prompt
from quantkit.verification.proof import Proof
from tests.publishing.cards import CARDS, GOLDEN, gguf

ROOT = Path(__file__).parents[2]
HOSTILE = "{{ ''.__class__.__mro__ }}{% for x in ().__class__.__bases__ %}</td><script>`|x`\n# Hi"


@pytest.mark.parametrize("name", CARDS)
def test_golden(name: str) -> None:
    """``python -m tests.publishing.cards`` writes them anew."""
    assert render_card(CARDS[name]()) == (GOLDEN / f"{name}.card").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CARDS)
def test_front_matter_is_valid(name: str) -> None:
    from huggingface_hub import ModelCard, ModelCardData

    facts = CARDS[name]()
    card = ModelCard(render_card(facts))
    data = card.data
    assert isinstance(data, ModelCardData)
    fields = data.to_dict()  # type: ignore[no-untyped-call]  # huggingface_hub's
    assert str(ModelCardData(**fields)) == str(data)
    assert data.base_model == facts.source.repo_id
    assert data.license == facts.source.license
    assert data.language == ["en", "fr"]
    assert data.datasets == ["some/corpus"]
    assert data.pipeline_tag == "text-generation"
    assert fields.get("base_model_relation") == ("quantized" if facts.source.repo_id else None)
    assert fields["quantized_by"] == "someone"
    assert fields["library_name"] == {"gguf": "gguf", "gptq": "auto-gptq"}.get(name, "transformers")
    assert {"moe", "mixtral", "quantized", "quantkit"} <= set(fields["tags"])


NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)*(?![\w])|\b[0-9a-f]{16,64}\b")


def _static_numbers() -> set[str]:
    """Numbers that the template itself says, such as the 5 of transformers 5."""
    from quantkit.publishing.card import _TEMPLATE

    text = re.sub(r"\{[{%].*?[%}]\}", " ", _TEMPLATE.read_text(encoding="utf-8"), flags=re.S)
    return set(NUMBER.findall(text))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _traced(facts: Facts) -> set[str]:
    """Every number that the manifest, a comparison, fit or the source give, as cards write it."""
    texts: list[str] = [facts.repo_id, str(facts.source)]
    for artifact in facts.artifacts:
        texts += [str(leaf) for leaf in _leaves(artifact.entry)]
        texts += [artifact.quant.good_for, f"{artifact.entry['bits_per_weight']:.2f}"]
        texts.append(format_size(sum(f["bytes"] for f in artifact.entry["files"])))
        texts += [format_count(artifact.entry["parameters"]), f"({len(artifact.files)} files)"]
    if facts.measured:
        found = facts.measured.comparison
        texts += [str(found.windows), str(found.context), found.text_sha256[:16], found.text]
        texts += [found.reference.name, *(row.verdict.reason for row in found.results)]
        for row in found.results:
            assert row.measures is not None
            m = row.measures
            texts += [f"{m.kld:.5f}", f"{m.kld_pm:.5f}", f"{m.ppl_ratio:.4f}"]
    if facts.fits:
        texts += [f"{facts.fits.context:,}", f"{facts.fits.context}"]
        texts += [str(n) for fit in facts.fits.by_name.values() for n in (fit.gpu, fit.ram) if n]
    for imatrix in facts.imatrices:
        texts += [imatrix.sha256, f"{imatrix.chunks}"]
    return {number for text in texts for number in NUMBER.findall(text)}


@pytest.mark.parametrize("name", CARDS)
def test_every_number_is_traced(name: str) -> None:
    facts = CARDS[name]()
    said = set(NUMBER.findall(render_card(facts)))
    assert len(said) > 10
    assert said - _traced(facts) - _static_numbers() == set()


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bits": lambda entry: entry.update(bits_per_weight=9.87),
    "parameters": lambda entry: entry.update(parameters=123_456_789),
    "version": lambda entry: entry.update(quantkit="8.8.8"),
    "kernel": lambda entry: entry["kernel"].update(version="8.8.8"),
    "llama.cpp": lambda entry: entry["smoke"]["details"]["llama.cpp"].update(version="8.8.8"),
    "tokens": lambda entry: entry["smoke"]["details"].update(generated_tokens=8888),
    "source": lambda entry: entry["source"]["weights"][0].update(sha256="8" * 64),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_manifest_says_is_what_the_card_says(change: str) -> None:
    facts = gguf()
    entry = copy.deepcopy(dict(facts.artifacts[0].entry))
    CHANGES[change](entry)
    other = (replace(facts.artifacts[0], entry=entry), *facts.artifacts[1:])
    before, after = render_card(facts), render_card(replace(facts, artifacts=other))
    assert before != after
    new = set(NUMBER.findall(after)) - set(NUMBER.findall(before))
    assert new <= _traced(replace(facts, artifacts=other))


def test_a_proof_is_told_once() -> None:
    proof = Proof("proven", "", 2e-6, 2e-4, 7e-12, 512, 4, 56, "5.23.0", ("experts were few",))
    facts = gguf()
    artifacts = []
    for artifact in facts.artifacts:
        entry = copy.deepcopy(dict(artifact.entry))
        entry["smoke"]["details"]["proof"] = proof.as_numbers()
        artifacts.append(replace(artifact, entry=entry))
    card = render_card(replace(facts, artifacts=tuple(artifacts)))
    said = "Proven against transformers 5.23.0 over 512 tokens, the first 4 of 56 layers: mean KLD"
    assert card.count(said) == 1
    assert "Not proven: experts were few." in card


@pytest.mark.parametrize("family", ["mixtral", "mistral"])
@pytest.mark.parametrize("name", ["gptq", "bnb"])
def test_only_what_a_test_has_loaded_is_offered(name: str, family: str) -> None:
    """transformers 5 with GPTQModel fills a mixture's experts with random numbers, silently."""
    facts = CARDS[name]()
    entry = {**facts.artifacts[0].entry}
    entry["source"] = {**entry["source"], "family": family}
    card = render_card(replace(facts, artifacts=(replace(facts.artifacts[0], entry=entry),)))
    offered = "\n".join(re.findall(r"```\w*\n(.*?)```", card, re.S)).lower()
    assert "vllm" not in card.lower()
    assert "gptqmodel" not in offered
    if name == "gptq":
        assert "automodelforcausallm" not in offered
        tested = (ROOT / "vendor" / "auto-gptq" / "constraints.txt").read_text(encoding="utf-8")
        [pins] = re.findall(r"pip install (auto-gptq.*)", offered)
        assert {pin for pin in pins.split() if f"\n{pin}" not in tested} == set()
        assert ("fill them with" in card) == (family == "mixtral")


def test_no_page_offers_what_gives_random_experts() -> None:
    profile = ROOT / "profiles" / "transformers.toml"
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), profile):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"pip install[^`]*gptqmodel|vllm serve|in vLLM", text, re.I), page
    gptq = (ROOT / "docs" / "gptq.md").read_text(encoding="utf-8")
    assert "transformers reads it" not in gptq
    assert "| transformers 5 with GPTQModel | Llama, Gemma 3 | **no**: random experts |" in gptq


def test_what_is_not_known_is_left_out() -> None:
    facts = replace(gguf(), measured=None, fits=None, imatrices=(), prompt=None, has_picture=False)
    facts = replace(facts, source=SourceFacts(license="mit"), is_signed=False, has_license=False)
    card = render_card(facts)
    for word in ("KLD", "fits in", "imatrix", "Prompt", ".png", "None", "model.sig", "commit |",
                 "language", "datasets", "base_model", "pipeline_tag"):  # fmt: skip
        assert word not in card, word


def test_remarks_are_said_once_each() -> None:
    facts = gguf()
    remarks = (["It has no window.", "A *second* one."], ["It has no window."])
    artifacts = tuple(
        replace(artifact, entry={**artifact.entry, "remarks": of_it})
        for artifact, of_it in zip(facts.artifacts, remarks, strict=True)
    )
    card = render_card(replace(facts, artifacts=artifacts))
    said = "\n\n> [!NOTE]\n> It has no window.\n>\n> A \\*second\\* one.\n\n## Which file"
    assert said in card
    assert card.replace(said, "\n\n## Which file") == render_card(facts)


def test_how_llama_cpps_tokens_compare_is_said_once() -> None:
    facts = gguf()
    record = {"tokenizer": "tokenizer.json", "texts": 2649, "deviations": {"NFC": 28}}
    artifacts = copy.deepcopy(facts.artifacts)
    for artifact in artifacts:
        artifact.entry["smoke"]["details"]["tokens"] = record
    card = render_card(replace(facts, artifacts=artifacts))
    said = (
        "llama.cpp gives the tokens of the checkpoint's tokenizer.json in 2,649 texts but for what "
        "no GGUF can say: it does not compose decomposed characters \\(28\\).\n\n"
    )
    assert card.count(said) == 1
    assert card.replace(said, "") == render_card(facts)


def test_what_to_choose_is_bold_and_what_another_beats_is_marked() -> None:
    facts = gguf()
    assert facts.measured is not None
    card = render_card(facts)
    assert "| **q6_k** |" in card  # q4_k_m failed
    assert "is smaller and closer" not in card

    # The larger one becomes the worse one, beyond what chance explains.
    large, small = sorted(facts.artifacts, key=lambda artifact: -artifact.n_bytes)
    rows = dict(facts.measured.rows)
    rows[small.name] = replace(rows[small.name], verdict=rows[large.name].verdict)
    kld = rows[small.name].measures
    assert kld is not None
    rows[large.name] = replace(rows[large.name], measures=replace(kld, kld=kld.kld + 1))
    worse = replace(facts, measured=replace(facts.measured, rows=rows))
    card = render_card(worse)
    assert card.count(f"**{small.quant.name} is smaller and closer**") == 1
    assert f"| **{small.quant.name}** |" in card
    rows[large.name] = replace(rows[large.name], measures=replace(kld, kld=kld.kld + kld.kld_pm))
    card = render_card(replace(facts, measured=replace(facts.measured, rows=rows)))
    assert "is smaller and closer" not in card


def test_hostile_facts_stay_text() -> None:
    """Whatever a source's author writes is shown as text in its place, or not at all."""
    facts = gguf()
    entry = copy.deepcopy(dict(facts.artifacts[0].entry))
    entry["source"]["name"] = entry["quantkit"] = HOSTILE
    entry["source"]["weights"][0]["name"] = HOSTILE
    entry["smoke"]["verdict"] = HOSTILE
    artifacts = (replace(facts.artifacts[0], entry=entry), *facts.artifacts[1:])
    source = replace(facts.source, repo_id=None, commit=None, license_name=HOSTILE)
    facts = replace(facts, artifacts=artifacts, source=source, prompt="```\n# Not a heading\n```")
    card = render_card(facts)
    import markdown_it

    assert "class 'object'" not in card
    tokens = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").parse(card)
    flat = [t for token in tokens for t in (token, *(token.children or []))]
    html = "".join(t.content for t in flat if t.type.startswith("html"))
    ours = "<details>\n<summary>sha256 of the weights</summary>\n</details>\n"
    assert html == ours  # the checksums' fold
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert "Hi" not in headings
    assert "Not a heading" not in headings
    assert "Checksums" in headings


def test_a_prompt_is_rendered() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
        "{{ m['content'] }} [/INST]{% elif m['role'] == 'assistant' %}"
        "{{ m['content'] + eos_token }}{% else %}"
        "{{ raise_exception('No system prompts') }}{% endif %}{% endfor %}"
    )
    shown = render_prompt(template, {"bos_token": "<s>", "eos_token": "</s>"})
    assert shown == "<s>[INST] {prompt} [/INST]{answer}</s>[INST] {next prompt} [/INST]"
    with_system = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    assert "{system prompt}" in str(render_prompt(with_system, {}))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__['os'].system('touch pwned') }}",
        "{{ messages.append(1) }}",
        "{{ 'a' * 10**11 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% unclosed",
        "",
        "{{ 'x' * 100000 }}",
    ],
)
def test_hostile_templates_do_nothing(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.publishing.prompt._SECONDS", 2)
    assert render_prompt(template, {}) is None


def test_a_recipe_is_told_in_full() -> None:
    """The card says how to build what no name stands for."""
    facts = gguf()
    recipe = {
        "version": 1,
        "arch": "llama",
        "base": "q4_k_m",
        "weighted": True,
        "basis": HOSTILE,
        "shapes": "0" * 64,
        "types": {"blk.0-55.attn_v.weight": "q8_0", "output.weight": "q6_k"},
    }
    quant = searched_quant("q4_k_m", 4.871)
    assert quant is not None
    first, other = facts.artifacts
    name = "Model-8x22B-4.87bpw"
    file = replace(other.files[0], path=f"{name}.gguf")
    entry = {**other.entry, "recipe": recipe}
    searched = replace(other, name=name, quant=quant, files=(file,), entry=entry)
    card = render_card(replace(facts, artifacts=(first, searched)))
    assert f"--quant q6_k \\\n  --recipe {name}.toml" in card
    (block,) = re.findall(r"```toml\n(.*?)\n```", card, re.DOTALL)
    assert tomllib.loads(block) == recipe
    assert f"| 4.87bpw | {format_size(other.n_bytes)} |" in card
    assert f"`{name}`: Not measured against a fixed mixture of its size: it was built from" in card


def test_how_a_file_was_chosen_is_told_with_all_figures() -> None:
    facts = gguf()
    first, other = facts.artifacts
    won = {"way": "searched", "quant": "4.87bpw", "kld": 0.01, "kld_pm": 0.0001, "delivered": True}
    lost = {"way": "fixed mixture", "quant": "q4_k_m", "kld": 0.02, "kld_pm": 0.0002}
    broken = {"way": "searched, floors lifted", "quant": "4.87bpw", "kld": None}
    choice = {
        "measured": True,
        "text": "judged.txt",
        "text_sha256": "ab" * 32,
        "context": 512,
        "windows": 7,
        "reference": "bf16",
        "candidates": [won, {**lost, "delivered": False}, {**broken, "delivered": False}],
    }
    chosen = replace(first, entry={**first.entry, "choice": choice})
    card = render_card(replace(facts, artifacts=(chosen, other)))
    line = next(line for line in card.splitlines() if "Chosen of 3 candidates" in line)
    assert "over 7 windows of 512 tokens of judged.txt \\(sha256 abababababababab\\)" in line
    assert "searched 0.01000 \u00b1 0.00010; the others: " in line
    assert "fixed mixture q4\\_k\\_m 0.02000 \u00b1 0.00020" in line
    assert line.endswith("searched, floors lifted not measured.")
    assert "Chosen of" not in render_card(facts)
