"""What tables call artifacts."""

from pathlib import Path

from quantkit.verification.subjects import Subject, told_apart


def subject(name: str, quant: str | None, folder: str = "a") -> Subject:
    return Subject(name, Path(folder) / name, quant, 0, 0)


def test_recipes_of_one_base_are_told_apart() -> None:
    found = [
        subject("M-Q4_K_M.gguf", "q4_k_m"),
        subject("M-4.25bpw.gguf", "q4_k_m"),
        subject("M-4.87bpw-00001-of-00002.gguf", "q4_k_m"),
    ]
    assert told_apart(found) == ["q4_k_m", "4.25bpw", "4.87bpw"]


def test_what_has_one_title_has_its_name_or_its_path() -> None:
    same = [subject("M-Q4_K_M.gguf", "q4_k_m"), subject("N-Q4_K_M.gguf", "q4_k_m")]
    assert told_apart(same) == ["M-Q4_K_M", "N-Q4_K_M"]
    same = [subject("M-4.25bpw.gguf", "q4_k_m"), subject("M-4.25bpw.gguf", "q4_k_m", "b")]
    assert told_apart(same) == ["a/M-4.25bpw.gguf", "b/M-4.25bpw.gguf"]
    assert told_apart([subject("some.gguf", None)]) == ["some.gguf"]
