"""Result files, read back: `read_result` one of them, `read_folder` all of a folder.

A result file is JSON with "format": 1, what one call of `python -m benchmarks` measured on one machine: where and how
(machine, versions, commit, command …), the ceilings of that machine, rows, fitted exponents, and what was left out.
A row is one contender at one case; rows whose `Row.key` is equal did the same work and may be set side by side.
What `benchmarks/gpu.py` and `gpu_conv.py` store has an older form; `stored_gpu` turns a folder of it into such rows.
Words that are not known here are left aside, so that a runner may store more. A precision has one name, `precision`.
"""

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

FORMAT = 1
LEVELS = ("loops", "steps", "runs", "scaling")
PRECISIONS = {"fp32": "float32", "fp64": "float64"}
"""Other names of a precision."""

Spread = tuple[float | None, float, float | None]
"""First quartile, median, third quartile; no quartiles where rounds were not paired."""


@dataclass(frozen=True)
class Row:
    """One contender at one case: times in seconds, memory in GiB, None where it was not measured or has no meaning.

    case: a name without the batch.   axis, x: what a scaling curve varies, and its value here.
    seconds: of each round.   over: other contender's time / this one's, round by round (quartiles and median).
    fraction: floor_seconds / median, of what the ceilings allow.   noisy: its spread is over the runner's bound.
    steps: of a training run, those it took to its loss.   interleaved: its rounds were taken in turns with the others'.
    mark: what a report has to say of the file that the row is from (another commit, changes that are not committed);
    stored nowhere.
    """

    level: str
    case: str
    contender: str
    ours: bool
    median: float
    what: str | None = None
    preset: str | None = None
    batch: int | None = None
    axis: str | None = None
    x: float | None = None
    dtype: str | None = None
    precision: str | None = None
    threads: int | None = None
    unit: str | None = None
    noisy: bool = False
    seconds: tuple[float, ...] = ()
    quartiles: tuple[float, float] | None = None
    over: dict[str, Spread] = field(default_factory=dict)
    flops: float | None = None
    bytes: float | None = None
    floor_seconds: float | None = None
    fraction: float | None = None
    peak_memory_gib: float | None = None
    start_memory_gib: float | None = None
    compile_seconds: float | None = None
    agreement: dict[str, float] = field(default_factory=dict)
    steps: int | None = None
    interleaved: bool = True
    mark: str = field(default="", metadata={"stored": False})

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for rows that did the same work in the same precision."""
        kind = self.precision or self.dtype
        return (self.level, self.case, self.what, self.preset, self.batch, self.axis, self.x, kind, self.threads)


@dataclass(frozen=True)
class Ceiling:
    """The rate of a matrix product or a copy; measured: in the same call as the rows."""

    what: str
    rate: float
    unit: str
    precision: str | None = None
    threads: int | None = None
    measured: bool = True


@dataclass(frozen=True)
class Fit:
    """median ≈ c x^exponent along one axis of one case, as the call that measured it fitted all its points."""

    case: str
    contender: str
    axis: str
    exponent: float
    stderr: float | None = None
    precision: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Result:
    """What one call measured. name: the file, or the folder of older files, below the folder that was read.

    elapsed_seconds: of the whole call.   load: the machine's load average when it began and when it ended.
    """

    name: str
    machine: dict[str, Any]
    rows: tuple[Row, ...]
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    dirty: bool | None = None
    command: str | None = None
    started: str | None = None
    threads: int | None = None
    level: str | None = None
    elapsed_seconds: float | None = None
    load: tuple[float | None, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    fits: tuple[Fit, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_result(path: Path, name: str | None = None) -> Result:
    """A file of format 1; ValueError says which file, which field, and what was wanted."""
    stored = load(path)
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ValueError(f'{path}: wanted a result file with "format": {FORMAT}, got {_short(stored)}')
    parts = {"rows": Row, "ceilings": Ceiling, "fits": Fit}
    values = {word: value for word, value in stored.items() if word not in parts and value is not None}
    for word, kind in parts.items():
        given = stored.get(word)
        given = [] if given is None and word != "rows" else given
        _wanted(isinstance(given, list), f"{path}: {word}", "a list", given)
        values[word] = tuple(_made(kind, one, f"{path}: {word}[{at}]") for at, one in enumerate(given))
    machine = values.get("machine")
    named = isinstance(machine, dict) and isinstance(machine.get("name"), str) and bool(machine["name"])
    _wanted(named, f"{path}: machine", "an object with a name", machine)
    return _made(Result, values | {"name": name or path.name}, str(path))


def read_folder(folder: Path) -> tuple[list[Result], list[str]]:
    """Every result below a folder, in the order of their names, and a line for each file that is not one.

    ValueError for a file that says it has format 1 and is wrong, and for a folder that holds no result.
    """
    from benchmarks.stored_gpu import is_older, read_older

    _wanted(folder.is_dir(), "results", "a folder of result files", str(folder))
    results, skipped, older = [], [], set()
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix()
        if is_older(path):
            older.add(path.parent)
            continue
        stored = load(path)
        if isinstance(stored, dict) and "format" in stored:
            results.append(read_result(path, name))
        else:
            skipped.append(f'{name}: skipped, has no "format": {FORMAT}')
    results += [read_older(one, one.relative_to(folder).as_posix() + "/") for one in sorted(older)]
    _wanted(bool(results), "results", f'at least one result file ("format": {FORMAT})', str(folder))
    return results, skipped


def load(path: Path) -> Any:
    """JSON, with NaN and infinities as null: not measured."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: wanted a JSON file, got {type(error).__name__}: {error}") from error


# --- checking what a file holds --------------------------------------------------------------------------------------


def _made(kind: type, given: Any, where: str) -> Any:
    """A Row, Ceiling, Fit or Result; unknown words are left aside, null is the default."""
    _wanted(isinstance(given, dict), where, "an object", given)
    values = {}
    for one in fields(kind):
        value = given.get(one.name) if one.metadata.get("stored", True) else None
        if value is not None:
            check = _CHECKS.get((kind, one.name)) or _CHECKS.get(str(one.type)) or (lambda value, where: value)
            values[one.name] = check(value, f"{where}.{one.name}")
    missing = [word for word in _REQUIRED[kind] if word not in values]
    _wanted(not missing, where, f"values of {', '.join(_REQUIRED[kind])}", f"none of {', '.join(missing)}")
    return kind(**values)


def _number(value: Any, where: str) -> float:
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    _wanted(right, where, "a number", value)
    return value


def _whole(value: Any, where: str) -> int:
    _wanted(isinstance(value, int) and not isinstance(value, bool) and value > 0, where, "a whole number > 0", value)
    return value


def _time(value: Any, where: str) -> float:
    _wanted(_number(value, where) > 0, where, "a number > 0", value)
    return value


def _text(value: Any, where: str) -> str:
    _wanted(isinstance(value, str), where, "a text", value)
    return value


def _truth(value: Any, where: str) -> bool:
    _wanted(isinstance(value, bool), where, "true or false", value)
    return value


def _level(value: Any, where: str) -> str:
    _wanted(value in LEVELS, where, f"one of {', '.join(LEVELS)}", value)
    return value


def _times(value: Any, where: str) -> tuple[float, ...]:
    _wanted(isinstance(value, list), where, "a list of times", value)
    return tuple(_time(one, where) for one in value)


def _quartiles(value: Any, where: str) -> tuple[float, ...]:
    _wanted(isinstance(value, list) and len(value) == 2, where, "two quartiles", value)
    return tuple(_time(one, where) for one in value)


def _over(value: Any, where: str) -> dict[str, tuple[float, ...]]:
    right = isinstance(value, dict) and all(isinstance(one, list) and len(one) == 3 for one in value.values())
    _wanted(right, where, "an object of [q1, median, q3]", value)
    return {name: tuple(_time(part, where) for part in one) for name, one in value.items()}


def precision(value: Any, where: str = "precision") -> str:
    """The one name of a precision: fp32 and float32 are the same."""
    return PRECISIONS.get(_text(value, where), value)


def _load(value: Any, where: str) -> tuple[float | None, ...]:
    _wanted(isinstance(value, list) and len(value) == 2, where, "two load averages", value)
    return tuple(None if one is None else _number(one, where) for one in value)


def _numbers(value: Any, where: str) -> dict[str, float]:
    _wanted(isinstance(value, dict), where, "an object of numbers", value)
    return {name: _number(one, where) for name, one in value.items() if one is not None}


def _texts(value: Any, where: str) -> dict[str, str]:
    _wanted(isinstance(value, dict), where, "an object of texts", value)
    return {name: _text(one, where) for name, one in value.items() if one is not None}


_REQUIRED = {
    Row: ("level", "case", "contender", "ours", "median"),
    Ceiling: ("what", "rate", "unit"),
    Fit: ("case", "contender", "axis", "exponent"),
    Result: ("name", "machine", "rows"),
}
_CHECKS: dict[Any, Any] = {
    str(str): _text,
    str(str | None): _text,
    str(bool): _truth,
    str(bool | None): _truth,
    str(int | None): _whole,
    str(float): _number,
    str(float | None): _number,
    str(dict[str, str]): _texts,
    str(dict[str, float]): _numbers,
    (Row, "level"): _level,
    (Row, "median"): _time,
    (Row, "seconds"): _times,
    (Row, "quartiles"): _quartiles,
    (Row, "over"): _over,
    (Ceiling, "rate"): _time,
    (Result, "load"): _load,
}
_CHECKS |= {(kind, "precision"): precision for kind in (Row, Ceiling, Fit)} | {(Row, "dtype"): precision}
"""By field, or by the type that a field is declared with."""


def _wanted(right: bool, where: str, form: str, got: Any) -> None:
    if not right:
        raise ValueError(f"{where}: wanted {form}, got {_short(got)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
