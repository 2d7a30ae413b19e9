"""What compiling costs: python -m benchmarks.first_use

Seconds from the start of a process to the end of its first training step of `digits`, whole, with an empty cache of
compiled kernels and again with the cache filled; and the same on NumPy, which is what of it is not compiling.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

STEP = """
import numpy as np, ddpm_ref
from ddpm_ref.discovery import get_backend
from ddpm_ref.files.source import open_source
from ddpm_ref.train import RECIPES, Trainer
trainer = Trainer(ddpm_ref.UNet(ddpm_ref.preset("digits")), ddpm_ref.Schedule.linear(), open_source("digits")[1],
                  RECIPES["digits"][1], get_backend({backend!r}))
trainer.step()
from ddpm_ref.sampling import generate_steps
next(generate_steps(trainer.net, trainer.params(), trainer.schedule, np.arange(100), (8, 8, 1), seed=0,
                    backend=trainer.backend))
"""


def main() -> None:
    """Time the three processes and print their seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        for label, backend in (("numba, first use", "numba"), ("numba, second use", "numba"), ("numpy", "numpy")):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", STEP.format(backend=backend)], env=environment, check=True)
            print(f"{label:18s} {time.perf_counter() - begun:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
