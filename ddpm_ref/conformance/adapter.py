"""Somebody's implementation behind the functions of an adapter: how it is found, called and read (NumPy in and out)."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.conventions import Conventions, did_you_mean, from_dict

FUNCTIONS: dict[str, str] = {
    "betas": "() -> (T,)  β_1 … β_T",
    "alpha_bar": "() -> (T,)  ᾱ_1 … ᾱ_T",
    "beta_tilde": "() -> (T,)  the posterior's variance β̃_t",
    "log_beta_tilde": "() -> (T,)  its logarithm (t = 1 is free)",
    "q_step": "(x_prev, t, eps) -> x_t  one step of the forward process",
    "q_sample": "(x_0, t, eps) -> x_t",
    "q_mean_var": "(x_0, t) -> mean, var  of q(x_t | x_0)",
    "q_posterior": "(x_0, x_t, t) -> mean, var  of q(x_{t-1} | x_t, x_0)",
    "predict_x_0": "(x_t, t, output) -> x̂_0, not clipped",
    "predict_eps": "(x_t, t, x_0) -> ε",
    "target": "(x_0, t, eps) -> what the network is trained to put out",
    "p_mean_var": "(x_t, t, output[, var_output]) -> mean, var  of p_θ(x_{t-1} | x_t)",
    "reverse_step": "(x_t, t, output, z[, var_output]) -> x_{t-1}",
    "sample": "(model, n) -> (n, …)  the whole sampling loop, drawing its own noise, with model(x, t) -> output in "
    "place of the network; (output, var_output) where variances are learned",
    "loss": "(x_0, t, eps, output) -> one number, or one per image, or one per element; of a sum of losses, one part",
    "loss_weights": "() -> (T,)  factors on the error of what is predicted",
    "decoder": "(x_0, mean, var) -> log-likelihood per element",
    "prior_kl": "(x_0) -> (N,)  L_T per dimension",
    "bound_term": "(x_0, x_t, t, output[, var_output]) -> (N,)  L_{t-1}, or L_0 at t = 1, per dimension",
    "interpolate": "(model, x_a, x_b, t, lam) -> image  (t one int; the chain is run with model as in sample)",
    "time_embedding": "(t, dim) -> (N, dim)",
    "ema": "(average, value, decay, step) -> the new average; step counts 1, 2, …",
    "draw_t": "(n) -> n training steps in their numbering",
    "scale": "(uint8 images) -> data_range",
    "unscale": "(images in data_range) -> uint8",
}
"""Every function an adapter may offer, with its arguments; x, ε, z and outputs are (N, *shape), t (N,) int64."""

TABLES = ("betas", "alpha_bar", "beta_tilde", "log_beta_tilde", "loss_weights")


class AdapterError(Exception):
    """The adapter could not be loaded, or one of its functions raised or gave something of another kind."""


class NotThere(Exception):
    """A function that is there but not for these arguments (NotImplementedError): as if it were not offered."""


class NotFinite(Exception):
    """A function gave NaN or infinity: the index of the first, its value."""

    def __init__(self, name: str, index: tuple[int, ...], value: float) -> None:
        super().__init__(f"{name} gave {value}")
        self.index, self.value = index, value


@dataclass(frozen=True)
class Adapter:
    """The functions that were offered and the conventions that were declared."""

    conventions: Conventions
    functions: dict[str, Callable[..., Any]] = field(repr=False)
    changed: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """How the report calls it."""
        return self.conventions.name

    def __contains__(self, name: object) -> bool:
        return name in self.functions

    def __call__(self, name: str, *args: Any) -> Any:
        """Call a function on copies of the arrays; AdapterError, with the place, if it raises."""
        copies = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
        try:
            with np.errstate(all="ignore"):  # 0/0 at t = 1 is often made and not used
                result = self.functions[name](*copies)
            pairs = [(a, b) for a, b in zip(args, copies, strict=True) if isinstance(a, np.ndarray)]
            if not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
                self.changed.setdefault(name, True)
            return result
        except _PASS:
            raise
        except NotImplementedError as error:
            raise NotThere(f"{name} raised NotImplementedError: {error}".rstrip(": ")) from error
        except Exception as error:
            hint = f"; is t_first = {self.conventions.t_first} right?" if isinstance(error, IndexError) else ""
            raise AdapterError(f"{name} raised {type(error).__name__}: {error}{_place(error)}{hint}") from error

    def changes(self) -> list[str]:
        """Notes on functions that were seen to overwrite their arguments, once each."""
        new = [name for name, fresh in self.changed.items() if fresh]
        self.changed.update(dict.fromkeys(new, False))
        return [f"{name} overwrites its arguments" for name in new]

    def array(self, name: str, shape: tuple[int, ...], *args: Any, finite: bool = True) -> Array:
        """Its result as float64 of this shape."""
        return self.read(name, self(name, *args), shape, finite=finite)

    def read(self, name: str, value: Any, shape: tuple[int, ...], *, finite: bool = True) -> Array:
        """A result as float64 of this shape; AdapterError for another kind or shape, NotFinite for NaN."""
        result = to_numpy(name, value)
        if result.shape != shape:
            hint = ""
            if name in TABLES and result.shape == (shape[0] + 1,):
                hint = "; leave out the entry that belongs to t = 0"
            raise AdapterError(f"{name} gave shape {result.shape}, wanted {shape}{hint}")
        return _finite(name, result) if finite else result

    def mean_or_var(self, name: str, shape: tuple[int, ...], pick: int, *args: Any) -> Array:
        """Its mean (pick 0) or var (1), of this shape: var may come as one number, (N,), (N, 1, …) or full.

        Only the one that is picked is looked at: a NaN in the mean says nothing of the variance.
        """
        result = self(name, *args)
        if not isinstance(result, (tuple, list)) or len(result) < 2:
            raise AdapterError(f"{name} gave {type(result).__name__}, wanted (mean, var)")
        if pick == 0:
            return self.read(name, result[0], shape)
        var = to_numpy(name, result[1])
        if var.ndim == 1 and len(var) == shape[0]:
            var = var.reshape(-1, *[1] * (len(shape) - 1))
        try:
            return _finite(name, np.broadcast_to(var, shape))
        except ValueError:
            raise AdapterError(
                f"{name} gave a var of shape {var.shape}, wanted {shape} or (N,) or one number"
            ) from None


class Stop(Exception):
    """Raised by a model that has seen enough, through the loop of the adapter; never the adapter's fault."""


_PASS = (Stop, KeyboardInterrupt)


def _finite(name: str, result: Array) -> Array:
    if not np.isfinite(result).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(result))[0])
        raise NotFinite(name, index, float(result[index]))
    return result


def to_numpy(name: str, value: Any) -> Array:
    """Any array or number as a float64 array; a torch tensor with a gradient or on a device too."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double() if hasattr(value, "double") else value
    try:
        return np.asarray(value, dtype=np.float64).copy()  # np.array() of a torch tensor warns: no copy keyword
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{name} gave {type(value).__name__}, wanted an array of numbers ({error})") from None


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({Path(frame.filename).name}, line {frame.lineno}, in {frame.name})"


# --- finding it ------------------------------------------------------------------------------------------------------


def load_adapter(adapter: object) -> Adapter:
    """The adapter behind a path "my_adapter.py", "package.module", either with ":Name", or an object or module.

    A class, or a function that makes one, is called without arguments. Of a file or module that has no function of its
    own but one class or object that has, it is that. Raises AdapterError (cannot be imported, offers nothing) or
    ValueError (an unknown convention, a name that is nearly that of a function).
    """
    if isinstance(adapter, Adapter):
        return adapter
    name = getattr(adapter, "__name__", type(adapter).__name__)
    if isinstance(adapter, (str, Path)):
        adapter, name = _import(str(adapter))
    if inspect.isclass(adapter) or inspect.isfunction(adapter):
        try:
            adapter = adapter()
        except Exception as error:
            raise AdapterError(f"{name}() raised {type(error).__name__}: {error}{_place(error)}") from error
    conventions = from_dict(getattr(adapter, "conventions", {}), name)
    functions = _functions(adapter)
    for known, function in functions.items():
        _check_arguments(known, function, conventions.learned)
    return Adapter(conventions, functions)


def _check_arguments(name: str, function: Callable[..., Any], learned: bool) -> None:
    """AdapterError if it cannot be called with the arguments of that name."""
    written = FUNCTIONS[name][1 : FUNCTIONS[name].index(")")]
    least, _, more = written.partition("[, ")
    count = len([w for w in least.split(",") if w.strip()]) + (1 if more and learned else 0)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*range(count))
    except TypeError:
        raise AdapterError(f"{name}: wanted a function of ({written}), got one of {signature}") from None


def _import(text: str) -> tuple[Any, str]:
    """The module or object that a path or dotted name stands for, and what to call it."""
    where, colon, attribute = text.rpartition(":")
    if not colon or not attribute.isidentifier():
        where, attribute = text, ""
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except AdapterError:
        raise
    except Exception as error:
        place = "" if isinstance(error, ModuleNotFoundError) else _place(error)
        if isinstance(error, ModuleNotFoundError) and Path(f"{where}.py").is_file():
            place = f"; {where}.py is there: is that meant?"
        raise AdapterError(f"{where}: {type(error).__name__}: {error}{place}") from error
    if not attribute:
        inside = _inside(module)
        if len(inside) > 1:
            raise AdapterError(
                f"{where} has no function of its own, but {', '.join(inside)} have: check {where}:{inside[0]}, say"
            )
        stem = Path(where).stem if where.endswith(".py") else where.rpartition(".")[2]
        return (getattr(module, inside[0]), inside[0]) if inside else (module, stem)
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise AdapterError(f"{where} has no {attribute!r}{did_you_mean(attribute, public)}")
    return getattr(module, attribute), attribute


def _inside(module: ModuleType) -> list[str]:
    """The objects of a module that offer functions, or else its classes, if it has no such function of its own."""
    public = {k: v for k, v in vars(module).items() if not k.startswith("_")}
    own = [k for k in FUNCTIONS if k in public and getattr(public[k], "__module__", module.__name__) == module.__name__]
    if own:
        return []
    offering = [k for k, v in public.items() if any(callable(getattr(v, name, None)) for name in FUNCTIONS)]
    objects = [k for k in offering if getattr(type(public[k]), "__module__", "") == module.__name__]
    classes = [k for k in offering if inspect.isclass(public[k]) and public[k].__module__ == module.__name__]
    return objects or classes


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise AdapterError(f"{path}: no such file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # for what lies beside it, also when imported later by one of its functions; last, so
        sys.path.append(folder)  # that an adapter named as the package it adapts does not stand before it
    spec = importlib.util.spec_from_file_location(f"_adapter_{path.stem}", path.resolve())
    if spec is None or spec.loader is None:
        raise AdapterError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def _functions(adapter: Any) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for name in FUNCTIONS:
        value = getattr(adapter, name, None)
        if value is None:
            continue
        if not callable(value):
            if name not in TABLES:
                wanted = f"wanted a function {FUNCTIONS[name]}, got {type(value).__name__}"
                raise ValueError(f"{name}: {wanted} (what is not for the checker may begin with _)")
            value = _constant(value)
        found[name] = value
    near = {}
    for name in _own_names(adapter):
        hint = did_you_mean(name, [known for known in FUNCTIONS if known not in found], cutoff=0.8)
        if "did you mean" in hint:
            near[name] = hint
    if not found:
        hints = "".join(f" ({name}{hint})" for name, hint in near.items())
        raise AdapterError(f"the adapter offers none of the functions{hints}: " + ", ".join(FUNCTIONS))
    for name, hint in near.items():
        raise ValueError(f"{name}: not a function the checker knows{hint} (a helper's name may begin with _)")
    return found


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _own_names(adapter: Any) -> list[str]:
    """The public functions written in the adapter itself, not those it imports or inherits."""
    if isinstance(adapter, ModuleType):
        own = {k: v for k, v in vars(adapter).items() if getattr(v, "__module__", None) == adapter.__name__}
    else:
        own = {**vars(type(adapter)), **getattr(adapter, "__dict__", {})}
    return [k for k, v in own.items() if inspect.isroutine(v) and not k.startswith("_") and k not in FUNCTIONS]
