"""What tests put in place of what pages show, and what they do not run, each with its reason."""

MIXTRAL, MISTRAL = "tests/checkpoints/tiny-mixtral", "tests/checkpoints/tiny-mistral"
ON_THE_HUB = "someone/Tiny-Mixtral"  # on a server of ours, with MIXTRAL's files

# Whole words in commands, on every page.
WORDS = {
    "MODEL": MISTRAL,
    "CHECKPOINT": MIXTRAL,
    "mistralai/Mixtral-8x22B-v0.1": ON_THE_HUB,
    "mistralai/Mixtral-8x7B-v0.1": ON_THE_HUB,
    "Mixtral-8x7B-v0.1": MIXTRAL,
    ".venv/bin/python": "python",
}

# What belongs to a page alone, before the words above.
OF_A_PAGE = {
    "README.md": {"--imatrix auto": "--imatrix auto --chunks 4"},  # else minutes
    "docs/bnb.md": {"out/Mixtral-8x22B-bnb-nf4": "out/Tiny-Mixtral-8x2.1M-bnb-nf4"},
    "docs/recipes.md": {"20GB": "3MB"},
    "docs/scale.md": {"8": "2"},
}

# Commands that a page takes to have been run.
FIRST = {
    "docs/bnb.md": (f"quantkit build {MIXTRAL} -q bnb-nf4 -o out",),
    "docs/family.md": (
        "python -c 'from pathlib import Path; from tests.raw_releases import raw_release; "
        f'raw_release(Path("{MIXTRAL}"), Path("RAW_DIR"), "safetensors")\'',
    ),
}

# What is not run. Options are looked up all the same (test_options.py).
NOT_RUN = {
    r"^make ": "sets up an environment, which .ci/run does",
    r"^pip install|^\.venv/bin/pip": "the environment of the tests has every extra",
    r"^ray |--cluster (auto|ray:)|\bbuild \.\.\.": "machines of a cluster",
    r"^(\.venv/bin/)?python (-m )?benchmarks": "minutes to hours, on a machine that is idle",
}

# Sections whose commands are cheap enough for every run. The native tests run whole pages.
PLAIN = (("README.md", "Sixty seconds"),)

# What no two runs print alike: speeds, and what a model says, which depends on the processor.
VARIES = (
    (r"[\d,.]+ tokens/s", "N tokens/s"),
    (r"[\d,.]+(\s*(?:│|\|)\s*passed)", r"N\1"),
    (r"(?m)^It said: .*$", "It said: ..."),
    # What is said where something takes long.
    (r"(?m)^(Compiling kernels, .*|.* left)\n", ""),
    # What is written at some moment, on some machine.
    (r"(quantkit\.json|SHA256SUMS|README\.md) *│ *(?:[\d.]+ k?B)? *│ [0-9a-f]{12}", r"\1"),
)

# Pages whose figures come out of a model, in floating point: their last digits depend on the
# processor. There every figure may differ, and the words and rows may not.
MEASURED = ("docs/calibrate.md", "docs/compare.md", "docs/family.md", "docs/proof.md")
