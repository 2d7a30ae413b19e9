"""The README's Python runs as it is printed."""

import re
from pathlib import Path
from typing import Any

import numpy as np

import ddpm_ref

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_python_runs_as_printed(monkeypatch: Any) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    program = "\n".join(blocks)
    assert len(blocks) >= 2 and "import ddpm_ref as ddpm" in program
    # The demo takes minutes: in its place, a checkpoint of the same form that was not trained.
    net = ddpm_ref.UNet(ddpm_ref.preset("digits"))

    class Untrained:
        def __init__(self, path: str) -> None:
            assert path == "runs/demo"
            self.net = net

        def params(self, weights: str) -> ddpm_ref.Params:
            assert weights == "ema"
            return net.init(0)

    monkeypatch.setattr(ddpm_ref, "load_checkpoint", Untrained, raising=False)
    names: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), names)
    # What its comments promise.
    assert abs(names["loss"] - names["oracle"].irreducible_loss(300)) < 0.05
    assert (names["which"].argmax(axis=1) == np.arange(256)).mean() > 0.3  # by chance: 1/256
    assert names["report"].backend.name == "fast" and names["report"].backend.own == ("upsample",)
    assert names["eps_model"](names["x_t"].astype(np.float32), 300).shape == names["x_t"].shape == (2, 8, 8, 1)
