"""Prompt files: one prompt per line, UTF-8."""

from pathlib import Path

from simplear_rl.data.order import items_of_step
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Prompt
from simplear_rl.policy.vocabulary import PromptEncoder


def read_prompts(file: Path, encode: PromptEncoder) -> list[str]:
    """All prompts of a file, in order.

    Raises:
        UserError: unreadable file, no prompts, an empty line, one with control characters or one that `encode`
            refuses as too long (with its number).
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{file}: no prompts in it")
    return [_prompt(file, number, line, encode) for number, line in enumerate(lines, start=1)]


def _prompt(file: Path, number: int, line: bytes, encode: PromptEncoder) -> str:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}, line {number}: not UTF-8: {line!r}") from error
    if not text:
        raise UserError(f"{file}, line {number}: empty prompt")
    if not text.isprintable():
        raise UserError(f"{file}, line {number}: control characters in {text!r}")
    try:
        encode(text)
    except UserError as error:
        raise UserError(f"{file}, line {number}: {error}") from None
    return text


def prompts_of_step(prompts: list[str], step: int, per_step: int, seed: int) -> list[Prompt]:
    """The prompts of training step `step` (from 1)."""
    return [Prompt(i, prompts[item]) for i, item in enumerate(items_of_step(step - 1, per_step, len(prompts), seed))]
