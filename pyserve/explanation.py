"""What an answer rests on."""

from typing import NamedTuple


class TokenShare(NamedTuple):
    """A token of a text and its part in the answer.

    Attributes:
        token: the token as fastText reads it; the last one is ``</s>``, the end of the line.
        share: what it adds to the label's score: by its word and its subwords, and an equal part of each word n-gram
            that it belongs to. Below 0, it speaks against the label.
        known: whether it is a word of the model's dictionary.
    """

    token: str
    share: float
    known: bool


class Explanation(NamedTuple):
    """Why a label won.

    Attributes:
        label: the winning label as it is shown; None where no token of the text has a row in the model.
        confidence: its confidence.
        score: its score before softmax or the sigmoid: the sum of all shares.
        tokens: the tokens in their order; those that look like labels are none.
        ngrams: how many word n-grams the text has.
        ngrams_known: how many of them have a row in the model.
    """

    label: str | None
    confidence: float
    score: float
    tokens: tuple[TokenShare, ...]
    ngrams: int
    ngrams_known: int

    @property
    def words_known(self) -> int:
        """How many tokens are words of the dictionary."""
        return sum(token.known for token in self.tokens)
