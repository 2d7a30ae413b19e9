"""What the paper reports, to stand beside what is measured here (§4; Tables 1, 2 and 4).

All of it is on CIFAR-10 with the 35.7 M parameter network. FID and Inception Score rest on a network trained on
ImageNet; bits/dim on 32x32 photographs with 256 grey levels: none of it is comparable to numbers on 8x8 digits, only
in its order and shape.
"""

from typing import NamedTuple


class Table1(NamedTuple):
    """A row of Table 1: Inception Score with its deviation, FID to the training set, and bits/dim (upper bounds).

    fid_test: to the test set, where it is given.
    """

    inception_score: float
    inception_score_sd: float
    fid: float
    nll_test: float
    nll_train: float
    fid_test: float | None = None


class Table2(NamedTuple):
    """A cell of Table 2."""

    inception_score: float
    inception_score_sd: float
    fid: float


class Table4(NamedTuple):
    """A row of Table 4: after so many reverse steps, T-t+1, the rate in bits/dim and the RMSE of x̂_0 (0…255)."""

    steps: int
    rate: float
    rmse: float


TABLE_1 = {
    "fixed": Table1(7.67, 0.13, 13.51, nll_test=3.70, nll_train=3.69),
    "simple": Table1(9.46, 0.11, 3.17, nll_test=3.75, nll_train=3.72, fid_test=5.24),
}
"""Unconditional, of a network that predicts ε: "fixed" is L with fixed isotropic Σ, "simple" L_simple."""

TABLE_2: dict[str, Table2 | None] = {
    "mu-learned": Table2(7.28, 0.10, 23.69),
    "mu-fixed": Table2(8.06, 0.09, 13.22),
    "mu-simple": None,
    "eps-learned": None,
    "eps-fixed": Table2(7.67, 0.13, 13.51),
    "eps-simple": Table2(9.46, 0.11, 3.17),
}
"""What the network predicts and what it is trained on, named as `ablation_cells.CELLS`; None: the cell is empty, since
training was unstable and samples scored out of range."""

TABLE_4 = (
    Table4(1000, 1.77581, 0.95136),
    Table4(900, 0.11994, 12.02277),
    Table4(800, 0.05415, 18.47482),
    Table4(700, 0.02866, 24.43656),
    Table4(600, 0.01507, 30.80948),
    Table4(500, 0.00716, 38.03236),
    Table4(400, 0.00282, 46.12765),
    Table4(300, 0.00081, 54.18826),
    Table4(200, 0.00013, 60.97170),
    Table4(100, 0.00000, 67.60125),
)
"""Progressive lossy compression: what has been sent after some of the 1,000 reverse steps, and how far x̂_0 then is."""

RATE, DISTORTION = 1.78, 1.97
"""Of the lossless code of §4.3 in bits/dim: Σ_{t>1} L_{t-1} + L_T, and L_0."""
DISTORTION_RMSE = 0.95
"""What the distortion is as a root mean square error on the scale 0…255."""
PRIOR_BITS = 1e-5
"""L_T in bits/dim, about (§4)."""

CIFAR10_PARAMETERS, CELEBAHQ256_PARAMETERS = 35_746_307, 113_673_219
TRAINING_STEPS, BATCH = 800_000, 128
STEPS_PER_SECOND = 21.0
"""Of training at batch 128, on a TPU v3-8."""
SECONDS_FOR_256_SAMPLES = 17.0
"""Of 1,000 steps each, on the same."""
