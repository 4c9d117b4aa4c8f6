"""The one exception type for mistakes that the user can mend; errors that others explain, and what was wrapped."""

from collections.abc import Iterator


class UserError(ValueError):
    """Bad input: the message names the file, key or line, what was expected and what was found.

    Entry points print the message without a traceback and exit with status 1.
    """


class PeerLostError(RuntimeError):
    """A process group failed because another member left it, whose own error says why."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was before: every actor that it crossed has wrapped it once."""
    while error is not None:
        yield error
        error = getattr(error, "cause", None)
