"""Which backends there are, and the one of a name: ours, those that other packages declare, and any class outright.

A package declares its backends in the entry-point group "ddpm_ref.backends" (name = "package.module:Class"). A module
says that it cannot be used here by raising ImportError, with the reason, when it is imported or its class called;
whatever else it raises there is a reason too.
"""

import importlib
from typing import Any

from ddpm_ref.backend import Backend, Description

GROUP = "ddpm_ref.backends"
FASTEST = "numba"
OURS = {
    "numpy": "ddpm_ref.backend:Backend",
    "numba": "ddpm_ref_numba:NumbaBackend",
    "cupy": "ddpm_ref_cupy:CupyBackend",
}
"""Ours are known without their entry points too, for a checkout that was not installed (PYTHONPATH=.:backends)."""
EXTRAS = {"numba": "numba"}
"""What installs a backend that cannot be used, where it does not say so itself (as cupy does, which may want a GPU)."""


class Unavailable(ValueError):
    """A backend that is known and cannot be used here; the message says why."""


def get_backend(name: str | None = None, threads: int | None = None, precision: str | None = None) -> Backend:
    """The backend of this name, or of "package.module:Class"; without a name numba if it can be used, else numpy.

    threads: how many it uses, the environment's or one a core unless given.  precision: of its matrix products, for a
    backend that has more than one.
    Raises ValueError for a name that is unknown or cannot be used here, listing what there is and, for what is not
    available, why.
    """
    if name is None:
        try:
            return _load(FASTEST, OURS[FASTEST], threads=threads, precision=precision)
        except Unavailable:
            name = "numpy"
    where = name if name.partition(":")[2] else OURS.get(name) or declared().get(name)
    if where is None:
        raise ValueError(f"backend: wanted {_choices()} or 'package.module:Class', got {name!r}")
    try:
        return _load(name, where, threads=threads, precision=precision)
    except Unavailable as error:
        there_is = "" if name == where else f"; there is {_choices(but=name)}"
        raise ValueError(f"backend: cannot load {name!r}: {error}{there_is}") from error


def declared() -> dict[str, str]:
    """Name -> "package.module:Class" of every backend, ours first."""
    from importlib.metadata import entry_points  # here, because importing it costs more than the rest of this package

    return OURS | {point.name: point.value for point in entry_points(group=GROUP) if point.name not in OURS}


def available_backends() -> dict[str, Description]:
    """What `get_backend` finds by name and can be used here. Loads every one of them."""
    return {name: found for name, found in survey().items() if isinstance(found, Description)}


def survey(threads: int | None = None) -> dict[str, Description | Unavailable]:
    """Every backend known by name, with so many threads: its description, or why it cannot be used here."""
    return {name: _described(name, where, threads) for name, where in declared().items()}


def _described(name: str, where: str, threads: int | None) -> Description | Unavailable:
    try:
        what = _load(name, where, threads=threads).describe()
    except Exception as error:  # Unavailable, or whatever somebody's `describe` raises
        return error if isinstance(error, Unavailable) else Unavailable(_reason(name, where, error))
    if not isinstance(what, Description):
        return Unavailable(f"its describe() returned {type(what).__name__}, no ddpm_ref.backend.Description")
    return what


def why_not(name: str) -> str | None:
    """Why one of our backends cannot be used here; None if it can."""
    try:
        _load(name, OURS[name])
    except ValueError as error:
        return str(error)
    return None


def _choices(but: str = "") -> str:
    """The backends that can be used, and why others (but this one) cannot."""
    found = {name: what for name, what in survey().items() if name != but}
    usable = ", ".join(name for name, what in found.items() if isinstance(what, Description))
    rest = "; ".join(f"{name}: {what}" for name, what in found.items() if isinstance(what, Unavailable))
    return f"{usable} (not available: {rest})" if rest else usable


def _load(name: str, where: str, **options: object) -> Backend:
    """An instance of the class at "package.module:Class", made with the options that are not None.

    Raises Unavailable if it cannot be used here, for whatever reason, ValueError for what is no backend or takes no
    such option.
    """
    module, _, attribute = where.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except _ANYTHING as error:
        raise Unavailable(_reason(name, where, error)) from error
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise ValueError(f"backend: {name!r} is not a subclass of ddpm_ref.Backend")
    given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    try:
        backend = found(**given)
    except _ANYTHING as error:
        if given and isinstance(error, ValueError):
            raise  # it says which it takes
        if given and isinstance(error, TypeError):
            listed = ", ".join(f"{option}={value}" for option, value in given.items())
            raise ValueError(f"backend: {name!r} cannot be made with {listed}: {error}") from error
        raise Unavailable(_reason(name, where, error)) from error
    return backend


_ANYTHING = (Exception, SystemExit)  # what somebody's module may raise while it is imported, or its class made


def _reason(name: str, where: str, error: BaseException) -> str:
    """Why the backend at "package.module:Class" could not be loaded, and which extra installs what it needs."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = where.partition(":")[0]
        text = f"{module if module.startswith(error.name + '.') else error.name} is not installed"
        return f'{text}: pip install "ddpm-ref[{EXTRAS[name]}]"' if name in EXTRAS else text
    return text
