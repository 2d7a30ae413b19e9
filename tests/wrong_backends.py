"""Backends that compute something else, for the tests of what compares them: named as "wrong_backends:Class"."""

import os
import time
from typing import Any

from ddpm_ref.backend import Backend


class Slightly(Backend):
    """A convolution whose output is right and whose gradient of the filters is 1 % too large."""

    name = "slightly"

    def conv3x3(self, x: Any, W: Any, b: Any, *, stride: int = 1, plus: Any = None) -> Any:
        y, backward = super().conv3x3(x, W, b, stride=stride, plus=plus)

        def adjoint(dy: Any) -> Any:
            dx, dW, db = backward(dy)
            return dx, 1.01 * dW, db

        return y, adjoint


class Same(Backend):
    """NumPy by another name."""

    name = "same"


class Ending(Backend):
    """Ends its process at the first attention."""

    name = "ending"

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        os._exit(3)


class _Counting(Backend):
    """Tells training steps, by their updates."""

    updates = 0

    def update(self, *vectors: Any) -> Any:
        self.updates += 1
        if self.updates > 2:  # made, warmed up; then comes a round
            self.stop()
        return super().update(*vectors)

    def stop(self) -> None:
        raise NotImplementedError


class Later(_Counting):
    """Ends its process in its first round."""

    name = "later"

    def stop(self) -> None:
        os._exit(4)


class Hanging(_Counting):
    """Does not come back from its first round."""

    name = "hanging"

    def stop(self) -> None:
        time.sleep(1000)
