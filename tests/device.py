"""A backend whose arrays live elsewhere: it computes with NumPy, but refuses arrays that were not moved to it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array


class DeviceArray:
    """Like a CuPy array: NumPy's functions work on it, but not together with a NumPy array, nor does it become one.

    Numbers and 0-dimensional arrays may be mixed in; `like=` makes one of a host array.
    """

    __slots__ = ("_x",)

    def __init__(self, x: np.ndarray) -> None:
        self._x = x

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("a device array does not become a NumPy array by itself: use to_host")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return _there(getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function is np.asarray:  # by like=, which moves a host array here
            return DeviceArray(np.asarray(*(_inside(a, host=True) for a in args), **options))
        return _there(function, args, options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # such as __array_interface__, by which NumPy would take the array
            raise AttributeError(name)
        value = getattr(self._x, name)
        return (lambda *args, **options: _there(value, args, options)) if callable(value) else _wrapped(value)

    def __getitem__(self, key: Any) -> Any:
        return _wrapped(self._x[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._x[key] = _inside(value)

    def __len__(self) -> int:
        return len(self._x)

    def __bool__(self) -> bool:
        return bool(self._x)

    def __float__(self) -> float:
        return float(self._x)


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: DeviceArray, *others: Any) -> Any:
        result = getattr(self._x, name)(*map(_inside, others))
        return self if name.startswith("__i") and name != "__invert__" else _wrapped(result)

    return apply


for _name in ("add", "sub", "mul", "truediv", "pow", "matmul", "lt", "le", "gt", "ge", "eq", "ne", "radd", "rsub",
              "rmul", "rtruediv", "rmatmul", "iadd", "isub", "imul", "itruediv", "neg", "abs", "invert"):  # fmt: skip
    setattr(DeviceArray, f"__{_name}__", _operator(f"__{_name}__"))


def _inside(value: Any, host: bool = False) -> Any:
    """A device array's NumPy array; TypeError for an array of the host."""
    if isinstance(value, DeviceArray):
        return value._x
    if isinstance(value, (list, tuple)) and any(isinstance(v, (DeviceArray, np.ndarray)) for v in value):
        return type(value)(_inside(v, host) for v in value)
    if isinstance(value, np.ndarray) and value.ndim and not host:
        raise TypeError(f"an array of the host among those of the device, {value.dtype} of shape {value.shape}")
    return value


def _wrapped(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return DeviceArray(value)
    return (
        tuple(map(_wrapped, value)) if type(value) is tuple and any(isinstance(v, np.ndarray) for v in value) else value
    )


def _there(function: Any, args: Any, options: Any) -> Any:
    out = options.get("out")
    result = function(*map(_inside, args), **{name: _inside(value) for name, value in options.items()})
    return (out[0] if isinstance(out, tuple) else out) if out is not None else _wrapped(result)


class Device(Backend):
    """Every operation by NumPy's body, on arrays that were moved here and nowhere else."""

    name = "device"
    device = "a device of the tests"

    def to_device(self, x: Array) -> Array:
        return x if isinstance(x, DeviceArray) else DeviceArray(np.array(x))

    def to_host(self, x: Array) -> np.ndarray:
        if not isinstance(x, DeviceArray):
            raise TypeError(f"not an array of the device: {type(x).__name__}")
        return x._x.copy()


HOST = {"samples", "t"}
"""What stays on the host: places of images, and steps."""


def _on_device(name: str) -> Callable[..., Any]:
    import inspect

    body = getattr(Backend, name)
    signature = inspect.signature(body)

    def operation(self: Device, *args: Any, **options: Any) -> Any:
        bound = signature.bind(self, *args, **options)
        given = {k: v if k in {*HOST, "self", "var"} else _inside(v) for k, v in bound.arguments.items() if k != "self"}
        host = Backend()
        result = getattr(host, name)(**given)
        if name == "update":
            return result
        if isinstance(result, tuple) and callable(result[1]):
            y, backward = result
            return DeviceArray(y), lambda *a, **more: _there(backward, a, more)
        return _wrapped(result)

    operation.__signature__ = signature  # type: ignore[attr-defined]
    return operation


for _name in ("conv3x3", "dense", "group_norm", "attention", "upsample", "concat", "add", "dropout", "update", "normal",
              "uniform", "q_sample", "p_sample"):  # fmt: skip
    setattr(Device, _name, _on_device(_name))
