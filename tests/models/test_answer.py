"""The pieces of an encoded text, and where its tokens are in the response again."""

from __future__ import annotations

import pytest

from gdr_plugin.models.text.answer import Piece, behind, places


def plain(text: str) -> str:
    return text


def test_a_token_reaches_over_the_part_of_the_response_that_it_spells() -> None:
    lead, answer = Piece(" ", 0, 0, literal=False), Piece("Hello", 0, 5)
    offsets = [(0, 1), (0, 3), (1, 1), (3, 6), (6, 6)]
    # The last spells nothing, and stands behind the text.
    assert places([lead, answer], offsets, plain) == ((0, 0), (0, 2), (0, 0), (2, 5), (5, 5))


def test_a_token_of_text_that_the_template_writes_reaches_over_the_whole_part_in_whose_place_it_stands() -> None:
    pieces = [Piece("ab", 0, 2), Piece("<think>", 2, 9, literal=False), Piece("cd", 9, 11)]
    offsets = [(0, 2), (2, 5), (5, 9), (9, 10), (10, 11), (1, 3)]
    assert places(pieces, offsets, plain) == ((0, 2), (2, 9), (2, 9), (9, 10), (10, 11), (1, 9))


def test_offsets_count_control_tokens_as_they_are_spelt() -> None:
    pieces = [Piece("a\0", 0, 8), Piece("b", 8, 9)]
    offsets = [(0, 1), (1, 8), (8, 9)]
    assert places(pieces, offsets, lambda text: text.replace("\0", "<|end|>")) == ((0, 1), (1, 8), (8, 9))


def test_without_text_every_token_is_at_its_beginning() -> None:
    assert places([], [(0, 0)], plain) == ((0, 0),)
    assert places([], [], plain) == ()


@pytest.mark.parametrize(
    ("pieces", "right"),
    [
        ([Piece("Hm.\n42", 0, 6)], [Piece("Hm.\n", 0, 0), Piece("42", 0, 2)]),
        ([Piece("\n42", 3, 6)], [Piece("\n", 0, 0), Piece("42", 0, 2)]),
        ([Piece("42", 4, 6)], [Piece("42", 0, 2)]),
        ([Piece("2", 5, 6)], [Piece("2", 1, 2)]),
        ([Piece("Hm.", 0, 3)], [Piece("Hm.", 0, 0)]),
        (
            [Piece("  ", 0, 0, False), Piece("Hm.\n4", 0, 5)],
            [Piece("  ", 0, 0, False), Piece("Hm.\n", 0, 0), Piece("4", 0, 1)],
        ),
    ],
)
def test_what_stands_before_the_response_has_no_place_in_it(pieces: list[Piece], right: list[Piece]) -> None:
    assert behind(pieces, 4) == right
