"""Every kernel at small sizes, for compute-sanitizer: two training steps and three reverse steps in each precision."""

import numpy as np
from ddpm_ref_cupy import CupyBackend
from ddpm_ref_cupy.cuda import CudaDevice

from ddpm_ref import Schedule, UNet, UNetConfig, generate_steps
from ddpm_ref.files.data import ImageData
from ddpm_ref.train import Trainer, TrainSettings

SMALL = UNetConfig(3, 32, (1, 2), 1, (1,), groups=8, dropout=0.1, image_size=16)
ODD = UNetConfig(1, 6, (1, 2), 1, (0,), groups=3, dropout=0.0, image_size=6)


def steps(run: CudaDevice, config: UNetConfig) -> None:
    """Train, then draw."""
    backend, net, schedule = CupyBackend(device=run), UNet(config), Schedule.linear(3)
    size, channels = config.image_size, config.channels
    pixels = np.random.default_rng(0).integers(0, 256, (9, size, size, channels), dtype=np.uint8)
    settings = TrainSettings(batch=4, flips=True)
    trainer = Trainer(net, schedule, ImageData(pixels, 256, "noise"), settings, backend)
    print(config.base, run.precision, *(f"{report.loss:.5f}" for report in trainer.steps(2)), flush=True)
    *_, (_, x_0, _) = generate_steps(
        net, trainer.params(), schedule, np.arange(3), (size, size, channels), seed=0, backend=backend
    )
    print(backend.to_host(x_0).std())


if __name__ == "__main__":
    for precision in ("fp32", "tf32", "bf16"):
        for config in (SMALL, ODD):
            steps(CudaDevice(precision, graphs=False), config)
