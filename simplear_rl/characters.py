"""Characters of prompts and paths: which are bad, and which are spaces."""

import unicodedata

BYTE_ORDER_MARK = "\ufeff"


def bad_characters(text: str) -> list[str]:
    """The control characters of a text and its bytes that are not UTF-8, each once, escaped."""
    found = dict.fromkeys(character for character in text if unicodedata.category(character) in ("Cc", "Cs"))
    return [repr(character)[1:-1] for character in found]


def tidy(text: str) -> str:
    """A text without byte order marks, with plain spaces for Unicode's, and with none at its ends.

    Joiners and variation selectors stay: they are part of words and emoji.
    """
    spaced = (" " if unicodedata.category(character) in ("Zs", "Zl", "Zp") else character for character in text)
    return "".join(spaced).replace(BYTE_ORDER_MARK, "").strip()


def tidy_prompt(text: str) -> str:
    """`tidy`, and no bad characters. Raises ValueError that names them."""
    text = tidy(text)
    if bad := bad_characters(text):
        raise ValueError(f"control characters {', '.join(bad)} in {text!r}")
    return text
