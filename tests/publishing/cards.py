"""Facts made by hand, for cards that are the same every time; running this writes their goldens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit.planning.quants import all_quants, folder_quants
from quantkit.publishing.card import Facts, ImatrixNote, render_card
from quantkit.publishing.fits import Fit, Fits
from quantkit.publishing.layout import Placed, PublishedArtifact
from quantkit.publishing.measured import Measured
from quantkit.publishing.metadata import SourceFacts
from quantkit.verification.compare import Comparison, Result
from quantkit.verification.divergence import Measures
from quantkit.verification.quality import Verdict
from quantkit.verification.subjects import Subject

GOLDEN = Path(__file__).parent / "golden"
SOURCE = SourceFacts(
    repo_id="original/Model-8x22B",
    commit="3f" * 20,
    verified=True,
    license="apache-2.0",
    languages=("en", "fr"),
    tags=("moe", "Mixtral"),
    datasets=("some/corpus",),
    pipeline_tag="text-generation",
)


def entry(quant: str, number: int, **more: Any) -> dict[str, Any]:
    """What a manifest says, all of its numbers different for another ``number``."""
    return {
        "quant": quant,
        "bits_per_weight": 4.8712 + number,
        "parameters": 140_630_071_296,
        "plan_sha256": f"{number:02d}" * 32,
        "files": [],
        "source": {
            "name": "Model-8x22B",
            "family": "mixtral",
            "weights": [
                {"name": f"model-0000{i}-of-00002.safetensors", "bytes": 10**9 + i,
                 "sha256": f"{70 + i}" * 32, "modified_ns": 1}
                for i in (1, 2)
            ],
        },
        "quantkit": "0.1.7",
        "kernel": {"name": "fast", "version": "quantkit 0.1.7 with llama-cpp-python 0.3.36",
                   "search": "ggml"},
        "imatrix": None,
        "smoke": {"ok": True, "verdict": "passed", "details": {
            "llama.cpp": {"version": "0.5.0-dev"}, "generated_tokens": 32}},
        **more,
    }  # fmt: skip


def artifact(
    name: str, quant: str, number: int, *files: str, folder: str = "", **more: Any
) -> PublishedArtifact:
    placed = tuple(
        Placed(Path(file), file, 45_123_000_000 + 777_000_000 * number + i, f"{number:x}{i}" * 32)
        for i, file in enumerate(files)
    )
    known = all_quants() | folder_quants()
    described = entry(quant, number, **more)
    described["files"] = [{"name": f.path, "bytes": f.n_bytes, "sha256": f.sha256} for f in placed]
    return PublishedArtifact(name, known[quant], folder, placed, described)


def measured(
    artifact: PublishedArtifact, kld: float, kld_pm: float, ratio: float, verdict: str = "healthy"
) -> Result:
    figures = Measures(
        n_tokens=19635, ppl=5.5 * ratio, ppl_pm=0.02, ppl_reference=5.5, ppl_reference_pm=0.02,
        ppl_ratio=ratio, ppl_ratio_pm=0.0003, kld=kld, kld_pm=kld_pm,
        kld_percentiles=(0.001, 0.01, 0.02, 0.1, 0.4), kld_max=3.0, same_top=0.95,
        same_top_pm=0.001, rms_dp=0.02, rms_dp_pm=0.001, mean_dp=-0.001,
    )  # fmt: skip
    file = artifact.files[0].path
    subject = Subject(file, Path(file), artifact.quant.name, artifact.n_bytes, 0)
    return Result(subject, figures, None, Verdict(verdict == "healthy", verdict, None))


def gguf() -> Facts:
    imatrix = {"file": "imatrix.gguf", "sha256": "ab" * 32}
    shards = [f"Model-8x22B-Q6_K/Model-8x22B-Q6_K-0000{i}-of-00002.gguf" for i in (1, 2)]
    artifacts = (
        artifact(
            "Model-8x22B-Q6_K", "q6_k", 3, *shards, folder="Model-8x22B-Q6_K", imatrix=imatrix
        ),
        artifact("Model-8x22B-Q4_K_M", "q4_k_m", 1, "Model-8x22B-Q4_K_M.gguf", imatrix=imatrix),
    )
    rows = {
        artifacts[0].name: measured(artifacts[0], 0.00234, 0.00011, 1.00112),
        artifacts[1].name: measured(
            artifacts[1], 0.01789, 0.00055, 1.01873, "mean KLD 0.01789 is above 0.01."
        ),
    }
    reference = Subject("Model-8x22B-BF16.gguf", Path("Model-8x22B-BF16.gguf"), "bf16", 0, 0)
    comparison = Comparison(reference, "wiki.test.txt", "cd" * 32, 512, 77, 8, tuple(rows.values()))
    return Facts(
        repo_id="someone/Model-8x22B-GGUF",
        artifacts=artifacts,
        source=SOURCE,
        imatrices=(ImatrixNote("imatrix.gguf", "ab" * 32, "wiki.train.txt", 128, published=True),),
        measured=Measured(comparison, rows),
        fits=Fits(8192, {artifacts[0].name: Fit(141, 192), artifacts[1].name: Fit(96, 128)}),
        prompt="<s>[INST] {prompt} [/INST]{answer}</s>",
        has_picture=True,
        has_license=True,
        is_signed=True,
    )


def gptq() -> Facts:
    config = {"bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": True, "sym": True}
    calibration = {"text": ["/home/me/wiki.train.txt"], "chunks": 128, "context": 512}
    made = artifact(
        "Model-8x22B-gptq-int4", "gptq-int4", 5, "model.safetensors", "config.json",
        quantization_config=config, calibration=calibration,
        kernel={"name": "gptq", "version": "0.1.7"},
    )  # fmt: skip
    return Facts(
        repo_id="someone/Model-8x22B-GPTQ",
        artifacts=(made,),
        source=replace(SOURCE, repo_id=None, commit=None, verified=False),
        fits=Fits(8192, {made.name: Fit(96, None)}),
        has_license=True,
    )


def bnb() -> Facts:
    kinds = ("bnb-int8", "bnb-nf4")
    tools = {"bitsandbytes": "0.50.2", "torch": "2.13.0"}
    made = tuple(
        artifact(f"Model-8x22B-{kind}", kind, 6 + i, f"Model-8x22B-{kind}/model.safetensors",
                 f"Model-8x22B-{kind}/config.json", folder=f"Model-8x22B-{kind}", tools=tools)
        for i, kind in enumerate(kinds)
    )  # fmt: skip
    untested = {**made[1].entry, "smoke": None}
    return Facts(
        repo_id="someone/Model-8x22B-bnb",
        artifacts=(made[0], replace(made[1], entry=untested)),
        source=replace(
            SOURCE, license="other", license_name="acme-1.1",
            license_link="https://example.org/license",
        ),
    )  # fmt: skip


CARDS = {"gguf": gguf, "gptq": gptq, "bnb": bnb}

if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, facts in CARDS.items():
        (GOLDEN / f"{name}.card").write_text(render_card(facts()), encoding="utf-8")
