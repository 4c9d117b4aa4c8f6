"""The errors of the project: UserError, which the user can mend; lost actors and peers; and what an error wraps."""

from collections.abc import Callable, Iterator, Sequence


class UserError(ValueError):
    """Bad input: the message names the file, key or line, what was expected and what was found.

    Entry points print the message without a traceback and exit with status 1.
    """


class ActorLostError(UserError):
    """An actor or an object is gone and Ray does not bring it back. `learner`: it can be had from the checkpoint."""

    def __init__(self, message: str, learner: bool):
        super().__init__(message)
        self.learner = learner


class PeerLostError(RuntimeError):
    """A process group failed because another member left it, whose own error says why."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was before: every actor that it crossed has wrapped it once."""
    while error is not None:
        yield error
        error = getattr(error, "cause", None)


def device_memory_error(error: BaseException) -> BaseException | None:
    """PyTorch's error behind another one: a device has no memory left."""
    kinds = ("torch", "OutOfMemoryError")  # by name: nothing here imports torch
    return next((part for part in causes(error) if (type(part).__module__, type(part).__name__) == kinds), None)


def first_of(lines: Sequence[str], most: int = 20) -> list[str]:
    """Lines of a message: the first ones, and how many more there are."""
    return [*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])]


def some_of(names: Sequence[str], most: int) -> str:
    """Names in a message: the first ones, and dots where there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def all_faults(*checks: Callable[[], object]) -> None:
    """Make every check, and raise one UserError that says what all of them found."""
    messages = []
    for check in checks:
        try:
            check()
        except UserError as error:
            messages.append(str(error))
    if messages:
        raise UserError("\n".join(messages))
