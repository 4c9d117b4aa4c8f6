"""Prompts that are wrong for an image of another one: a colour, a number or a relation exchanged."""

from collections.abc import Sequence

import numpy as np

KINDS = (
    ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "gray"),
    ("one", "two", "three", "four", "five", "six"),
    ("left", "right", "above", "below"),
)


def perturbed(prompt: str, number: int, others: Sequence[str], random: np.random.Generator) -> list[str]:
    """`number` prompts that differ from `prompt` in one word, exchanged for another of its kind; then some of `others`.

    Raises:
        ValueError: there are not so many.
    """
    words = prompt.split()
    found = {
        " ".join([*words[:i], other, *words[i + 1 :]])
        for i, word in enumerate(words)
        for kind in KINDS
        if word in kind
        for other in kind
        if other != word
    }
    exchanged = sorted(found - {prompt})
    random.shuffle(exchanged)
    rest = sorted(set(others) - found - {prompt}) if len(exchanged) < number else []
    random.shuffle(rest)
    wrong = [*exchanged, *rest][:number]
    if len(wrong) < number:
        raise ValueError(f"{prompt!r}: expected {number} other prompts, found {len(wrong)}")
    return wrong
