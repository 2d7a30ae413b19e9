"""All parameters in one flat vector with named views, so that Adam, EMA, clipping and checkpoints are one loop each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm_ref.checks import Array

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Params:
    """Named arrays that are views of one contiguous vector: `params["conv_in/W"]`; assigning writes through.

    vector: (P,) floating.  shapes: name -> shape, in the vector's order.
    """

    vector: Array
    shapes: Shapes

    def __post_init__(self) -> None:
        size = count(self.shapes)
        if self.vector.shape != (size,):
            raise ValueError(
                f"vector: wanted shape ({size},) for these {len(self.shapes)} arrays, got {self.vector.shape}"
            )
        views, first = {}, 0
        for name, shape in self.shapes.items():
            last = first + int(np.prod(shape))
            views[name] = self.vector[first:last].reshape(shape)
            first = last
        object.__setattr__(self, "_views", views)

    @property
    def views(self) -> dict[str, Array]:
        """Name -> view, in the vector's order."""
        return self._views  # type: ignore[attr-defined,no-any-return]

    def __getitem__(self, name: str) -> Array:
        return self._views[name]  # type: ignore[attr-defined]

    def __setitem__(self, name: str, value: Any) -> None:
        self.views[name][...] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def under(self, prefix: str) -> "Scope":
        """The parameters whose names begin with prefix + "/", by the rest of their names."""
        return Scope(self, prefix)

    def like(self, vector: Array) -> "Params":
        """Another vector under the same names."""
        return Params(vector, self.shapes)

    def astype(self, dtype: Any) -> "Params":
        """A copy in another dtype, such as float64 for a gradient check."""
        return self.like(self.vector.astype(dtype))


@dataclass(frozen=True)
class Scope:
    """One layer's parameters: `params.under("down_0/block_0")["conv1/W"]`."""

    params: Params
    prefix: str

    def __getitem__(self, name: str) -> Array:
        return self.params[f"{self.prefix}/{name}"]

    def __setitem__(self, name: str, value: Any) -> None:
        self.params[f"{self.prefix}/{name}"] = value


def count(shapes: Shapes) -> int:
    """How many numbers these arrays hold."""
    return sum(int(np.prod(shape)) for shape in shapes.values())
