"""The first samples of the files, tried before anything starts."""

from collections import defaultdict
from collections.abc import Sequence

from simplear_rl.data.columns import Columns, FormatError
from simplear_rl.data.images import BadSampleError
from simplear_rl.data.listing import printable
from simplear_rl.data.readers import Part, read_samples
from simplear_rl.data.reasons import Reasons
from simplear_rl.data.sources import read_sample
from simplear_rl.errors import UserError

FILES = 100  # at most, evenly spread
SAMPLES = 50  # of each file, up to the first good one


def try_first(parts: Sequence[Part], size: int, columns: Columns, min_size: int | None) -> list[str]:
    """Read the first samples of the files that parts come from; returns a line for each fault that is no error.

    Raises:
        UserError: the columns of a file are not known, its captions are lists without a choice, or no file has a good
            sample. The message lists the faults of all files.
    """
    first: dict[str, Part] = {}
    for part in parts:
        first.setdefault(part.file, part)
    tried = list(first.values())[:: -(-len(first) // FILES) or 1]
    faults = {part.file: _try(part, size, columns, min_size) for part in tried}
    wrong = {file: fault for file, fault in faults.items() if fault}
    lines = _by_fault({file: fault for file, (fault, _) in wrong.items()})
    if any(misnamed for _, misnamed in wrong.values()):
        raise UserError("\n".join(["the first samples do not have the expected columns:", *lines]))
    if len(wrong) == len(faults):
        raise UserError("\n".join(["none of the first samples is good:", *(lines or ["  there are none"])]))
    return lines


def _try(part: Part, size: int, columns: Columns, min_size: int | None) -> tuple[str, bool] | None:
    """Why the first samples are bad and whether their columns are the reason, or None if one of them is good."""
    if part.problem:
        return part.problem, False
    reasons, misnamed, number = Reasons(), True, 0
    try:
        for number, found in enumerate(read_samples(part, columns), start=1):
            try:
                read_sample(part, found, size, columns, min_size)
                return None
            except BadSampleError as error:
                reasons.add([found.misnamed or str(error)])
                misnamed &= bool(found.misnamed) or isinstance(error, FormatError)
            if number == SAMPLES:
                break
    except OSError as error:
        return str(error), False
    return "; ".join(reasons.lines()) or "no samples", misnamed and number > 0


def _by_fault(faults: dict[str, str]) -> list[str]:
    files = defaultdict(list)
    for file, fault in faults.items():
        files[fault].append(file)
    return [
        printable(f"  {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {fault}")
        for fault, names in files.items()
    ]
