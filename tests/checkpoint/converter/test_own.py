"""A user's own llama.cpp: what is missing in it, and its revision, read without running git."""

from pathlib import Path

import pytest

from quantkit.checkpoint.converter.own import check_tree, name_tree, read_revision
from quantkit.core.errors import ConverterError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = COMMIT[::-1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "llama.cpp"
    for name in ("conversion/__init__.py", "conversion/base.py", "gguf-py/gguf/__init__.py"):
        write(folder / name, "")
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def refused(folder: Path) -> str:
    with pytest.raises(ConverterError) as caught:
        check_tree(folder)
    return str(caught.value)


def test_a_whole_one_is_taken(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree.parent)
    assert check_tree(Path("llama.cpp")) == tree
    assert name_tree(tree) == f"llama.cpp in {tree}"


def test_what_is_none_says_what_is_missing(tree: Path) -> None:
    (tree / "gguf-py/gguf/__init__.py").unlink()
    said = f"{tree} is no complete folder of llama.cpp (gguf-py/gguf/__init__.py missing); "
    assert refused(tree) == said + "give the one that convert_hf_to_gguf.py lies in."
    assert "conversion/__init__.py, conversion/base.py, gguf-py" in refused(tree.parent)
    assert "is not a folder" in refused(tree / "none")
    assert "is not a folder" in refused(tree / "conversion" / "base.py")


def test_an_older_layout_is_named(tree: Path) -> None:
    (tree / "conversion/base.py").unlink()
    write(tree / "convert_hf_to_gguf.py", "")
    assert "no conversion/base.py: it is an older llama.cpp" in refused(tree)


def test_the_revision_of_a_branch(tree: Path) -> None:
    write(tree / ".git/HEAD", "ref: refs/heads/master\n")
    assert read_revision(tree) is None  # no commit yet
    write(
        tree / ".git/packed-refs", f"# pack-refs\n{OTHER} refs/heads/m\n{COMMIT} refs/heads/master"
    )
    assert read_revision(tree) == COMMIT
    write(tree / ".git/refs/heads/master", OTHER + "\n")  # newer than what is packed
    assert name_tree(tree) == f"llama.cpp in {tree} at {OTHER}"


def test_the_revision_of_a_tag(tree: Path) -> None:
    write(tree / ".git/HEAD", COMMIT + "\n")
    assert read_revision(tree) == COMMIT


def test_the_revision_of_a_worktree(tree: Path) -> None:
    git = tree.parent / "main/.git/worktrees/llama.cpp"
    write(tree / ".git", "gitdir: ../main/.git/worktrees/llama.cpp\n")
    write(git / "HEAD", "ref: refs/heads/new\n")
    write(git / "commondir", "../..\n")
    write(tree.parent / "main/.git/refs/heads/new", COMMIT)
    assert read_revision(tree) == COMMIT


@pytest.mark.parametrize(
    "head",
    ["ref: refs/../../../secret", "ref: /etc/hostname", "not a commit", "ref: ", "", "\xff" * 5000],
)
def test_odd_heads_are_no_revision(tree: Path, head: str) -> None:
    write(tree / "secret", COMMIT)
    write(tree / ".git/HEAD", head)
    assert read_revision(tree) is None


def test_a_link_that_leads_nowhere_is_no_revision(tree: Path) -> None:
    write(tree / ".git", "gitdir: ../../nowhere")
    assert read_revision(tree) is None
