"""A network's gradients into one flat vector, by one launch instead of a copy for each array."""

from typing import Any

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.params import Params, Scope, Shapes
from ddpm_ref_cupy.device import Device, Launch

CHUNK = 4096  # numbers of a block, as in step.cu


class Places:
    """Where each array lies in the vector, and room for the addresses they come from; made once, used in every step."""

    def __init__(self, run: Device, shapes: Shapes) -> None:
        self.run, self.names = run, {name: shape for name, shape in shapes.items() if np.prod(shape)}
        self.first = np.cumsum([0, *(int(np.prod(shape)) for shape in self.names.values())])
        self.on_device = run.to_device(self.first.astype(np.int64))
        self.sources = run.zeros((len(self.names),), np.uint64)


class GatheredParams(Params):
    """Parameters whose gradients are not copied as they come: `UNet`'s backward then returns a `Gathered`."""

    def of(self, places: Places) -> "GatheredParams":
        """With these places for the gradients."""
        object.__setattr__(self, "places", places)
        return self

    def like(self, vector: Array) -> Any:
        """Where gradients are put."""
        return Gathered(self.places, vector)  # type: ignore[attr-defined]


class Gathered:
    """Gradients by name, kept as they are until `gather`."""

    def __init__(self, places: Places, vector: Array) -> None:
        self._places, self._vector = places, vector
        self._parts: dict[str, Array] = {}

    def __setitem__(self, name: str, value: Array) -> None:
        self._parts[name] = value

    def under(self, prefix: str) -> Scope:
        """One layer's."""
        return Scope(self, prefix)  # type: ignore[arg-type]

    def gather(self) -> Array:
        """The vector of all of them."""
        p, vector = self._places, self._vector
        parts = [p.run.contiguous(self._parts[name]) for name in p.names]
        for part, (name, shape) in zip(parts, p.names.items(), strict=True):
            if part.shape != shape or part.dtype != vector.dtype:
                raise ValueError(
                    f"{name}: wanted a gradient {shape} of {vector.dtype}, got {part.shape} of {part.dtype}"
                )
        p.run.write(p.sources, np.array([p.run.address(part) for part in parts], np.uint64))
        launch = Launch("step.step_gather", (-(-vector.size // CHUNK),), (256,), 0, vector.dtype)
        p.run.launch(launch, p.sources, p.on_device, np.int32(len(parts)), vector)
        return vector
