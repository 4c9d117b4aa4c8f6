"""The first samples of the files, tried before anything starts."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice

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
    """Read the first samples of the files that parts come from.

    Returns lines that say from which columns they came, and which files had bad samples alone.

    Raises:
        UserError: the columns of a file are not known, its captions are lists without a choice, or no file has a good
            sample. The message lists the faults of all files.
    """
    files = {file: list(of_file) for file, of_file in groupby(parts, key=lambda part: part.file)}
    tried = list(files)[:: -(-len(files) // FILES) or 1]
    results = {file: _try(files[file], size, columns, min_size) for file in tried}
    faults = {file: result for file, result in results.items() if isinstance(result, _Fault)}
    lines = _by_text({file: fault.text for file, fault in faults.items()})
    if any(fault.misnamed for fault in faults.values()):
        raise UserError("\n".join(["the first samples do not have the expected columns:", *lines]))
    if len(faults) == len(results):
        raise UserError("\n".join(["none of the first samples is good:", *(lines or ["  there are no samples"])]))
    used = {file: result for file, result in results.items() if isinstance(result, str)}
    return [*_by_text(used), *(f"  the first samples are bad: {line.strip()}" for line in lines)]


@dataclass(frozen=True)
class _Fault:
    text: str
    misnamed: bool = False  # whether it lies in the columns of all samples


def _try(parts: Sequence[Part], size: int, columns: Columns, min_size: int | None) -> str | _Fault:
    """From which columns the first good sample comes, or why there is none."""
    if parts[0].problem:
        return _Fault(parts[0].problem)
    reasons, misnamed = Reasons(), True
    samples = ((part, found) for part in parts for found in read_samples(part, columns))
    try:
        for part, found in islice(samples, SAMPLES):
            try:
                read_sample(part, found, size, columns, min_size)
                names = zip(("image", "caption", "short caption"), found.used, strict=True)
                used = ", ".join(f"{role} from {name}" for role, name in names if name)
                chosen = columns.short_caption
                return used if chosen in (None, found.used[2]) else f"{used}, no {chosen} (short_caption_column)"
            except BadSampleError as error:
                reasons.add([found.misnamed or str(error)])
                misnamed &= bool(found.misnamed) or isinstance(error, FormatError)
    except OSError as error:
        return _Fault(f"the file cannot be read: {error}")
    return _Fault("; ".join(reasons.lines()) or "no samples", misnamed and bool(reasons.counts))


def _by_text(texts: dict[str, str]) -> list[str]:
    """A line for each text, with the first of its files."""
    files = defaultdict(list)
    for file, text in texts.items():
        files[text].append(file)
    return [
        printable(f"  {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {text}")
        for text, names in files.items()
    ]
