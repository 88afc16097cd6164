"""What a client wrote is shown on one line and does nothing there."""

import json

import pytest

from usagekeeper.printable import json_text, sentence, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("/api/ä/日本", "/api/ä/日本", id="text-stays"),
        pytest.param("/a\r\nINFO admin logged in", "/a\\r\\nINFO admin logged in", id="a-forged-line"),
        pytest.param("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07", id="terminal-sequences"),
        pytest.param("\x9b31m", "\\x9b31m", id="c1-control"),
        pytest.param("a\u202etxt.exe", "a\\u202etxt.exe", id="writing-direction"),
        pytest.param("a\u2028b\u200b", "a\\u2028b\\u200b", id="other-line-ends-and-nothing"),
        pytest.param("\ud800", "\\ud800", id="half-a-surrogate"),
        pytest.param("\x00\x7f", "\\x00\\x7f", id="nul-and-delete"),
        pytest.param("\U000e0041", "\\U000e0041", id="tag-characters"),
    ],
)
def test_attack_33_what_is_no_visible_character_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert sentence(text) == shown
    assert shown.isprintable()


def test_two_texts_never_look_the_same() -> None:
    assert visible("a\\n") != visible("a\n")


def test_a_sentence_keeps_the_backslashes_of_what_it_quotes() -> None:
    assert sentence(f"no route {'a' + chr(10)!r}") == "no route 'a\\n'"


def test_a_long_text_is_cut_where_it_is_told() -> None:
    assert visible("x" * 50, longest=10) == "x" * 9 + "…"


def test_attack_33_json_is_visible_too_and_says_the_same() -> None:
    text = "\x7f\x1b\u202e\ud800"
    assert json_text([text]).isascii()
    assert json_text([text]).isprintable()
    assert json.loads(json_text([text])) == [text]
