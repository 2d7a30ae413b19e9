"""The command line: `ddpm-ref COMMAND`, the same as `python -m ddpm_ref COMMAND`."""

import argparse
import io
import os
import sys
import warnings

from ddpm_ref import __version__
from ddpm_ref.nn.plan import PRESETS
from ddpm_ref.objective import ERRORS
from ddpm_ref.reverse import PARAMETRISATIONS
from ddpm_ref.schedule import SCHEDULES
from ddpm_ref.train import RECIPES, Diverged

DESCRIPTION = """Denoising Diffusion Probabilistic Models (Ho, Jain & Abbeel 2020) in NumPy.

Begin with `ddpm-ref demo`: it learns to draw digits in a few minutes and shows how."""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Texts as written; defaults shown where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("ddpm-ref", description=DESCRIPTION, formatter_class=_Formatter)
    parser.add_argument("--version", action="version", version=f"ddpm_ref {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.\n{more}",
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    demo = command(
        "demo",
        "train on 1,500 digits, draw 100 new ones, write pictures",
        "\nNeeds no data and no download; takes minutes.",
    )
    _shared(demo, "where to write (runs/demo, or the first of runs/demo-2, -3 … that is new)")
    _drawing(demo)
    demo.add_argument("--steps", type=int, help=f"training steps ({RECIPES['digits'][0]})")
    demo.add_argument("--resume", metavar="FOLDER", help="go on with a demo that was stopped")
    demo.set_defaults(**{k: None for k in _NETWORK_OPTIONS}, preset="digits", data="digits", schedule="linear", T=1000,
                      dtype="float32", save_every=None, log_every=None)  # fmt: skip

    train = command(
        "train",
        "train a network on your own images",
        "\nSIGINT (Ctrl-C) and SIGTERM finish the step, save and exit; --resume goes on bit for bit.\n\n"
        "examples:\n  ddpm-ref train --preset mnist --data train-images-idx3-ubyte.gz\n"
        "  ddpm-ref train --preset cifar10 --data cifar-10-batches-bin --micro-batch 8\n"
        "  ddpm-ref train --preset mnist --data my-photos --image-size 32\n\n" + _recipes(),
    )
    _shared(train, "where to write (runs/PRESET, or the first of runs/PRESET-2, -3 … that is new)")
    _training(train)

    sample = command(
        "sample", "draw images from a checkpoint", "\nWrites samples.npz, samples.png, denoising.png and denoising.gif."
    )
    _shared(
        sample, "where to write (samples-SEED in the run's folder, or the first of samples-SEED-2, -3 … that is new)"
    )
    _drawing(sample, checkpoint=True)

    evaluate = command(
        "evaluate",
        "draw as many images as were held out and judge them beside these",
        "\nFor labelled data. Prints class shares by a classifier, its mean top-class probability, the Fréchet\n"
        "distance on raw pixels to the training images and the median distance to the nearest of them, each\n"
        "with its limit (chosen for the digits). Exits with 1 if one is broken.",
    )
    _shared(evaluate, "where to write (evaluation-SEED in the run's folder, or the first of -2, -3 … that is new)")
    _drawing(evaluate, checkpoint=True, count=False)

    info = command("info", "say what a checkpoint holds")
    info.add_argument("checkpoint", help="a checkpoint, or a run's folder (its newest)")

    backends = command(
        "backends",
        "list what can run the hot loops, or check one",
        "\nSays for each which operations are its own and which are NumPy's, and for what is not available why.\n"
        "With --check, exits with 0 if the backend does what NumPy does, 1 if not, 2 if it cannot be loaded.",
    )
    backends.add_argument("--check", metavar="NAME", help="hold this backend (or package.module:Class) to the contract")
    backends.add_argument("--threads", type=int, metavar="N", help="how many they are to use")

    check = command(
        "check",
        "hold any implementation of the paper to its equations, through an adapter",
        "\nExits with 0 if nothing is broken, 1 if something is, 2 if the adapter cannot be loaded or one of its\n"
        "functions raises.\n\nexamples:\n  ddpm-ref check --list\n  ddpm-ref check my_adapter.py\n"
        "  ddpm-ref check package.module:Adapter --only q-sample posterior-mean --json",
    )
    check.add_argument("adapter", nargs="?", metavar="ADAPTER", help="my_adapter.py or package.module, or either :Name")
    check.add_argument("--list", action="store_true", help="say what an adapter may offer and declare, and exit")
    check.add_argument("--only", nargs="+", metavar="ID", help="these properties alone")
    check.add_argument("--json", action="store_true", help="the report as JSON")
    check.add_argument("--seed", type=int, default=0, help="of all random inputs")
    return parser


def _recipes() -> str:
    """The presets as a table."""
    row = "{:<13}{:>6}{:>9}{:>7}{:>9}{:>8}{:>8}".format
    lines = [row("preset", "size", "steps", "batch", "lr", "warmup", "ema")]
    for name, (steps, s) in RECIPES.items():
        lines.append(row(name, PRESETS[name].image_size, steps, s.batch, s.adam.lr, s.adam.warmup, s.adam.ema))
    more = "With fewer steps also lower --warmup and --ema (0.995 looks back over about 200 steps)."
    return "\n".join([*lines, more])


def _shared(parser: argparse.ArgumentParser, where: str) -> None:
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


def _drawing(parser: argparse.ArgumentParser, *, checkpoint: bool = False, count: bool = True) -> None:
    """How to sample: Algorithm 2 and the released code's variations."""
    if checkpoint:
        parser.add_argument("checkpoint", help="a checkpoint, or a run's folder (its newest)")
        parser.add_argument("--var", choices=("beta", "beta_tilde", "learned"), help="σ_t² (as trained unless given)")
    else:
        parser.set_defaults(var=None)
    if count:
        parser.add_argument("--count", type=int, default=100, metavar="N", help="how many images to draw")
    parser.add_argument("--draw-batch", type=int, default=100, metavar="N", help="images drawn at a time")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged or last parameters")
    parser.add_argument("--temperature", type=float, default=1.0, help="factor on σ_t z")
    clip = argparse.BooleanOptionalAction
    parser.add_argument(
        "--clip", action=clip, default=True, help="clip x̂_0 to [-1, 1] at each step, as the released code"
    )


_NETWORK_OPTIONS = (
    "base", "mult", "blocks", "attention_levels", "groups", "dropout", "predicts", "error", "weight", "w_simple",
    "w_elbo", "learned_weights", "lr", "warmup", "ema", "clip_norm", "batch", "micro_batch", "flips", "image_size",
    "levels", "pad", "held_out", "beta_1", "beta_T",
)  # fmt: skip


def _training(parser: argparse.ArgumentParser) -> None:
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


_WITH_RESUME = {
    "train": {"--resume", "--steps", "--backend", "--threads", "--precision", "--save-every", "--log-every"},
    "demo": {"--resume", "--steps", "--backend", "--threads", "--precision", "--count", "--draw-batch", "--weights",
             "--temperature", "--clip", "--no-clip"},
}  # fmt: skip


def _options(argv: list[str]) -> set[str]:
    """The long options on a command line."""
    return {word.partition("=")[0] for word in argv if word.startswith("--")}


def main(argv: list[str] | None = None) -> int:
    """Run a command; errors of the user's making are one line on standard error and exit status 2."""
    for stream in (sys.stdout, sys.stderr):  # β and ᾱ must not end a run where the terminal has no UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    args = parser.parse_args(argv)
    if getattr(args, "resume", None) is not None and (odd := _options(argv) - _WITH_RESUME[args.command]):
        parser.error(f"a resumed run goes on as it began; leave out {', '.join(sorted(odd))}")

    try:
        if args.command == "check":  # needs none of the libraries that the other commands do
            from ddpm_ref.conformance.command import check_command

            return check_command(args)
        if args.command == "backends":
            from ddpm_ref.backend_command import backends_command

            return backends_command(args)
        from ddpm_ref import commands  # after --help, which need not wait for it

        commands.check_counts(args)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"ddpm-ref: note: {message}", file=sys.stderr)
            return int(getattr(commands, args.command)(args))
    except Diverged as error:
        print(f"ddpm-ref: training stopped: {error}. The last checkpoint is kept; try a lower --lr.", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, ImportError, OSError) as error:
        print(f"ddpm-ref: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        less = "--micro-batch" if args.command == "train" else "--draw-batch"
        print(f"ddpm-ref: out of memory ({error}); a smaller {less} needs less", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ddpm-ref: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
