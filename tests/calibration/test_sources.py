"""Texts mixed by weight, and conversations as a model sees them."""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from quantkit.calibration.chats import render_chats
from quantkit.calibration.sources import (
    PIECE,
    Conversation,
    Piece,
    TextSource,
    parse_source,
    parse_sources,
    pieces_of,
)
from quantkit.calibration.text import make_corpus
from quantkit.checkpoint.open import open_checkpoint
from quantkit.checkpoint.tokenizer.encode import encode_pieces
from quantkit.core.errors import CalibrationError, TokenizerError
from tests.calibration.runs import TINY

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ raise_exception('no tools') }}{% endif %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
)
CHATS = [
    {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]},
    {"conversations": [{"from": "human", "value": "Red?"}, {"from": "gpt", "value": "Blue."}]},
    [{"role": "user", "content": "Left or </s> right?"}],
]


def rendered(chats: Sequence[Conversation]) -> list[str | None]:
    return ["|".join(f"{m['role']}: {m['content']}" for m in chat) for chat in chats]


def write_chats(file: Path, chats: Sequence[object] = CHATS) -> Path:
    file.write_text("".join(f"{json.dumps(chat)}\n\n" for chat in chats))
    return file


def paragraphs(file: Path, letter: str, count: int) -> Path:
    file.write_text("\n\n".join(letter * 500 for _ in range(count)))
    return file


def test_shares_hold_from_the_beginning_on(tmp_path: Path) -> None:
    sources = [
        TextSource(paragraphs(tmp_path / "a", "a", 400), weight=3),
        TextSource(paragraphs(tmp_path / "b", "b", 400)),  # counts 1
    ]
    pieces = pieces_of(sources, rendered, 10**9)
    for count in (8, 16, len(pieces)):
        text = "".join(piece.text for piece in pieces[:count])
        assert abs(text.count("a") - 3 * text.count("b")) <= 4 * PIECE + 2000
    # The first is used up: more of the second would make another mixture.
    assert text.count("a") == 400 * 500
    assert not any(piece.special for piece in pieces)
    few = pieces_of(sources, rendered, 10_000)
    assert few == pieces[: len(few)]
    assert sum(len(piece.text) for piece in few[:-1]) < 10_000


def test_text_is_cut_where_it_may_be_and_nothing_is_lost(tmp_path: Path) -> None:
    lines = "\n".join("word " * 30 for _ in range(100))
    for text in ("x" * 5000, "word " * 2000, lines, "p" * 1500 + "\n\n" + "q" * 100):
        (tmp_path / "t").write_text(text)
        pieces = pieces_of([TextSource(tmp_path / "t", weight=1)], rendered, 10**9)
        assert "".join(piece.text for piece in pieces) == text + "\n\n"
        assert all(len(piece.text) <= 2 * PIECE + 2 for piece in pieces)
        if "word" in text:
            assert all(piece.text[-1] in " \n" for piece in pieces)


def test_without_weights_all_follow_each_other(tmp_path: Path) -> None:
    text = TextSource(paragraphs(tmp_path / "a", "a", 2))
    chat = TextSource(write_chats(tmp_path / "chats.jsonl"), is_chat=True)
    assert pieces_of([text, text], rendered, 1) == [Piece("\n\n".join(["a" * 500] * 4))]
    first, *others = pieces_of([text, chat], rendered, 10**9)
    assert first == Piece("a" * 500 + "\n\n" + "a" * 500 + "\n\n")
    assert others == [
        Piece("user: One?|assistant: Two.", special=True),
        Piece("user: Red?|assistant: Blue.", special=True),
        Piece("user: Left or </s> right?", special=True),
    ]


def test_how_sources_are_named(tmp_path: Path) -> None:
    odd = tmp_path / "a:2"
    odd.write_text("x")
    assert parse_source(str(odd), "--text") == TextSource(odd)  # a file that is there is meant
    assert parse_source("b.txt:0.5", "--text") == TextSource(Path("b.txt"), weight=0.5)
    assert parse_source("C:/b.txt", "--text") == TextSource(Path("C:/b.txt"))
    named = parse_sources(["b.txt:2", "c.txt"], ["d.jsonl:1"])
    assert [source.name for source in named] == [
        "b.txt (weight 2)",
        "c.txt",
        "d.jsonl (conversations, weight 1)",
    ]
    for weight in ("0", "-1", "nan", "inf"):
        with pytest.raises(CalibrationError, match="a weight is a number above 0"):
            parse_source(f"b.txt:{weight}", "--text")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[\n", "line 1 .*; give one conversation per line"),  # a file that is one document
        ('{"text": "Hello"}', "line 1 is not a conversation"),
        ('{"messages": []}', "line 1 is not a conversation"),
        ('{"messages": [{"role": "user"}]}', "line 1 is not a conversation"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "line 1: .*template refuses"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            "line 1: .* type 'image_url'",
        ),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "line 1 is not a conv"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}', "line 1 is not a conversation"),
        ("", "has no conversation"),
    ],
)
def test_what_is_no_conversation(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(line)
    folder = chatting(tmp_path)
    with pytest.raises(CalibrationError, match=f"chats.jsonl.*{said}"):
        make_corpus(open_checkpoint(folder), [TextSource(file, is_chat=True)], 2, 16)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    for weight in (None, 2.0):
        with pytest.raises(CalibrationError, match=r"empty\.txt is empty"):
            pieces_of([TextSource(empty, weight=weight)], rendered, 10)


def chatting(tmp_path: Path, template: str = TEMPLATE) -> Path:
    """tiny-mistral with a chat template."""
    folder = shutil.copytree(TINY / "tiny-mistral", tmp_path / "chatting")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return folder


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (TEMPLATE, "<s>[user] One?\nTwo?</s>"),
        (
            "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
            "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}",
            "One?Two?",
        ),
    ],
)
def test_contents_in_parts(tmp_path: Path, template: str, wanted: str) -> None:
    """A template that knows parts gets them, any other one gets their text."""
    checkpoint = open_checkpoint(chatting(tmp_path, template))
    parts = [{"type": "text", "text": text} for text in ("One?", "Two?")]
    source = TextSource(
        write_chats(tmp_path / "chats.jsonl", [[{"role": "user", "content": parts}]]), is_chat=True
    )
    [piece] = pieces_of([source], partial(render_chats, checkpoint), 100)
    assert piece == Piece(wanted, special=True)


def test_special_tokens_of_a_template_are_special(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(chatting(tmp_path))
    source = TextSource(write_chats(tmp_path / "chats.jsonl", CHATS * 4), is_chat=True)
    corpus = make_corpus(checkpoint, [source], 100, 16)
    assert corpus.names == (f"{source.file} (conversations)",)
    tokens = corpus.tokens.reshape(-1).tolist()
    assert tokens[0] == 1
    assert tokens[1] != 1  # the template's own BOS is not doubled
    assert tokens.count(2) >= 12  # </s> after each turn
    plain = encode_pieces(checkpoint.path, checkpoint.config, [("</s>", False)])
    assert 2 not in plain.ids
    special = encode_pieces(checkpoint.path, checkpoint.config, [("</s>", True), ("</s>", False)])
    assert special.ids == [2, *plain.ids]


def test_a_model_without_template_or_special_tokens(tmp_path: Path) -> None:
    source = TextSource(write_chats(tmp_path / "chats.jsonl"), is_chat=True)
    folder = chatting(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CalibrationError, match="has no chat template"):
        make_corpus(open_checkpoint(bare), [source], 2, 16)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json, which conversations need"):
        make_corpus(open_checkpoint(folder), [source], 2, 16)
