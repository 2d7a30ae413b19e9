"""The options of the commands of `ddpm-ref`, in groups that several share."""

import argparse

from ddpm_ref.nn.plan import PRESETS
from ddpm_ref.objective import ERRORS
from ddpm_ref.reverse import PARAMETRISATIONS
from ddpm_ref.schedule import SCHEDULES
from ddpm_ref.train import RECIPES


def recipes() -> str:
    """The presets as a table."""
    row = "{:<13}{:>6}{:>9}{:>7}{:>9}{:>8}{:>8}".format
    lines = [row("preset", "size", "steps", "batch", "lr", "warmup", "ema")]
    for name, (steps, s) in RECIPES.items():
        lines.append(row(name, PRESETS[name].image_size, steps, s.batch, s.adam.lr, s.adam.warmup, s.adam.ema))
    more = "With fewer steps also lower --warmup and --ema (0.995 looks back over about 200 steps)."
    return "\n".join([*lines, more])


def shared(parser: argparse.ArgumentParser, where: str) -> None:
    """What every command that computes takes; where: the default of --out."""
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of initial weights, training and sampling noise; the held-out images do not depend on it",
    )
    parser.add_argument(
        "--backend",
        metavar="NAME",
        help="what runs the hot loops: one of `ddpm-ref backends`, or package.module:Class (numba if it can be used, "
        "else numpy)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of the backend (OMP_NUM_THREADS or the backend's own variable if set, else one for each core)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "tf32", "bf16"),
        help="of the backend's matrix products, where it has more than one (cupy: fp32)",
    )
    parser.add_argument("--out", metavar="FOLDER", help=where)


def drawing(
    parser: argparse.ArgumentParser,
    *,
    checkpoint: bool = False,
    count: bool = True,
    temperature: bool = True,
    draws: bool = True,
) -> None:
    """How to sample: Algorithm 2 and the released code's variations.  draws: images, not only their bound."""
    if checkpoint:
        parser.add_argument("checkpoint", help="a checkpoint, or a run's folder (its newest)")
        parser.add_argument("--var", choices=("beta", "beta_tilde", "learned"), help="σ_t² (as trained unless given)")
    else:
        parser.set_defaults(var=None)
    if count:
        parser.add_argument("--count", type=int, default=100, metavar="N", help="how many images to draw")
    if draws:
        parser.add_argument("--draw-batch", type=int, default=100, metavar="N", help="images drawn at a time")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged or last parameters")
    if temperature:
        parser.add_argument("--temperature", type=float, default=1.0, help="factor on σ_t z")
    else:
        parser.set_defaults(temperature=1.0)
    clip = argparse.BooleanOptionalAction
    parser.add_argument(
        "--clip", action=clip, default=True, help="clip x̂_0 to [-1, 1] at each step, as the released code"
    )


NETWORK_OPTIONS = (
    "base", "mult", "blocks", "attention_levels", "groups", "dropout", "predicts", "error", "weight", "w_simple",
    "w_elbo", "learned_weights", "lr", "warmup", "ema", "clip_norm", "batch", "micro_batch", "flips", "image_size",
    "levels", "pad", "held_out", "beta_1", "beta_T",
)  # fmt: skip


def training(parser: argparse.ArgumentParser) -> None:
    """Everything about a training run; what is not given comes from the preset."""
    p = parser
    p.add_argument("--preset", choices=PRESETS, default="digits", help="network and settings to begin from")
    p.add_argument("--steps", type=int, help="train to this step (the preset's unless given)")
    p.add_argument(
        "--resume",
        metavar="FOLDER",
        help="go on with a run; only --steps, --backend, --threads, --precision, --save-every, --log-every may change",
    )
    p.add_argument(
        "--save-every", type=int, metavar="K", help="steps between checkpoints, of which two are kept (1000)"
    )
    p.add_argument("--log-every", type=int, metavar="K", help="steps between rows of log.csv (20)")
    p.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of the parameters")

    p.add_argument("--batch", type=int, metavar="N", help="images a step (the preset's unless given)")

    _data_options(p)
    _network_options(p)
    _process_options(p)
    _optimiser_options(p)


def _data_options(p: argparse.ArgumentParser) -> None:
    data = p.add_argument_group("data")
    data.add_argument("--data", default="digits", metavar="SOURCE",
                      help="digits, an IDX file, CIFAR-10 binaries, a folder of PNG or JPEG, .npy or .npz")  # fmt: skip
    data.add_argument(
        "--image-size",
        type=int,
        metavar="S",
        help="crop and resize pictures of a folder to S x S (needed unless all are one square size)",
    )
    data.add_argument("--pad", type=int, metavar="S", help="pad images to S x S (mnist: 32)")
    data.add_argument("--levels", type=int, metavar="K", help="grey levels of the data (256; digits: 17)")
    data.add_argument(
        "--held-out", type=int, metavar="N", help="images kept from training, 0 for none (a tenth; digits: 297)"
    )
    data.add_argument("--flips", action=argparse.BooleanOptionalAction, help="mirror images with probability 1/2")


def _network_options(p: argparse.ArgumentParser) -> None:
    net = p.add_argument_group("network (the preset's unless given)")
    net.add_argument("--base", type=int, help="width of the first level")
    net.add_argument("--mult", type=int, nargs="+", metavar="M", help="width of each level, in multiples of --base")
    net.add_argument("--blocks", type=int, help="residual blocks a level")
    net.add_argument("--attention-levels", type=int, nargs="*", metavar="I", help="levels with attention, from 0")
    net.add_argument("--groups", type=int, help="groups of every GroupNorm; must divide every width")
    net.add_argument("--dropout", type=float, help="rate while training")


def _process_options(p: argparse.ArgumentParser) -> None:
    process = p.add_argument_group("diffusion and objective (the paper's L_simple unless given)")
    process.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default="linear",
        help="of β_t; the paper compares linear, quadratic and constant",
    )
    process.add_argument("--T", type=int, default=1000, help="steps of the diffusion")
    process.add_argument("--beta-1", type=float, metavar="B", help="first β of the schedule (0.0001)")
    process.add_argument("--beta-T", type=float, metavar="B", help="last β (0.02); scale both by 1000/T with another T")
    process.add_argument(
        "--predicts",
        choices=PARAMETRISATIONS,
        help="what the network predicts: ε, x_0, the mean μ̃, or v (Salimans & Ho)",
    )
    process.add_argument("--var", choices=("beta", "beta_tilde", "learned"), help="σ_t² (beta); learned needs --w-elbo")
    process.add_argument("--error", choices=ERRORS, help="between output and target (squared)")
    process.add_argument("--weight", choices=("simple", "bound"), help="of each t: simple = 1, bound = Eq. 12")
    process.add_argument("--w-simple", type=float, metavar="W", help="weight of L_simple (1)")
    process.add_argument(
        "--w-elbo", type=float, metavar="W", help="weight of the bound's term, nats/dim, not multiplied by T (0)"
    )
    process.add_argument(
        "--learned-weights", action="store_true", default=None, help="divide each t's loss by a learned e^s_t"
    )


def _optimiser_options(p: argparse.ArgumentParser) -> None:
    opt = p.add_argument_group("optimiser (the preset's unless given)")
    opt.add_argument("--lr", type=float, help="Adam's learning rate")
    opt.add_argument("--warmup", type=int, metavar="K", help="steps over which the learning rate rises from 0")
    opt.add_argument("--ema", type=float, help="decay of the averaged parameters")
    opt.add_argument("--clip-norm", type=float, metavar="G", help="clip the gradient's norm here; 0: never (1)")
    opt.add_argument(
        "--micro-batch", type=int, metavar="N", help="images at a time within a step: less memory, same gradient"
    )
