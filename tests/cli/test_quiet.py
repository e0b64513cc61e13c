"""``--quiet`` and ``--overwrite``."""

from pathlib import Path

import pytest

from tests.cli.command import Outcome, quantkit, refusal
from tests.random_checkpoints import random_checkpoint


@pytest.mark.parametrize("place", [0, 1])
def test_quiet_leaves_results_and_errors(place: int, tmp_path: Path) -> None:
    def said(*words: object) -> Outcome:
        return quantkit(*([*words, "--quiet"] if place else ["--quiet", *words]))

    model = random_checkpoint(tmp_path / "model", "mixtral", num_hidden_layers=1)
    built = said("build", model, "-q", "q8_0", "-o", tmp_path / "out", "--no-smoke")
    assert built.err == ""
    assert "Q8_0.gguf" in built.out
    assert "Next:" not in built.out
    assert refusal(said("build", tmp_path / "absent", "-q", "q8_0"))
    loud = quantkit("build", model, "-q", "q8_0", "-o", tmp_path / "out", "--no-smoke")
    assert "was there already" in loud.err  # it lasts for one command


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("recipe", "mixtral-8x7b", "--bpw", "4"), "-o"),
        (("recipe", "mixtral-8x7b", "--bpw", "4"), "--tensor-type-file"),
        (("fit", "mixtral-8x7b"), "--plot"),
        (("compare", "absent"), "--html"),
        (("calibrate", "absent"), "--plot"),
    ],
)
def test_no_file_is_replaced_unasked(words: tuple[str, ...], option: str, tmp_path: Path) -> None:
    there = tmp_path / "there.png"
    there.write_text("mine")
    sentence = refusal(quantkit(*words, option, there))
    assert sentence == f"{there} already exists; --overwrite replaces it, or name another."
    assert there.read_text() == "mine"


def test_pictures_in_a_folder_are_files_too(tmp_path: Path) -> None:
    (tmp_path / "frontier.svg").write_text("mine")
    sentence = refusal(quantkit("compare", "absent", "--plot", tmp_path))
    assert sentence.startswith(f"{tmp_path / 'frontier.svg'} already exists; --overwrite")
    assert "absent" in refusal(quantkit("compare", "absent", "--plot", tmp_path, "--overwrite"))


def test_overwrite_replaces(tmp_path: Path) -> None:
    there = tmp_path / "r.toml"
    there.write_text("mine")
    done = quantkit("recipe", "mixtral-8x7b", "--bpw", "4", "-o", there, "--overwrite")
    assert done.code in (0, None), done
    assert "mine" not in there.read_text()
