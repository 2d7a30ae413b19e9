"""The command line: `ddpm-ref COMMAND`, the same as `python -m ddpm_ref COMMAND`."""

import argparse
import importlib
import io
import os
import sys
import warnings
from typing import Any

from ddpm_ref import __version__, options
from ddpm_ref.train import RECIPES, Diverged

EXPERIMENTS = {
    "paper": "run every experiment of the paper's §4 that needs no download, and show them on one page",
    "ablation": "train what Table 2 compares, each with several seeds, and judge samples and bits/dim",
    "likelihood": "bound the likelihood of training and held-out images, term by term (Table 1)",
    "rate_distortion": "rate and distortion of progressive coding (Figure 5, Table 4)",
    "generation": "show how images come about: x̂_0 over the reverse process, samples that share x_t "
    "(Figures 6, 7, 10, 14)",
    "interpolation": "mix two images at step t of the diffusion and decode the mixture (Figures 8, 9)",
    "neighbours": "show samples beside the training images nearest to them (Figures 12, 15)",
    "coding": "send toys from coarse to fine as real bytes and receive them (Algorithms 3 and 4)",
    "autoregressive": "mask one coordinate a step instead of adding noise: the autoregressive view",
}
"""Commands that are modules of `ddpm_ref.experiments`, each with MORE, `add_options(parser)` and `run(args)`."""

DESCRIPTION = """Denoising Diffusion Probabilistic Models (Ho, Jain & Abbeel 2020) in NumPy.

Begin with `ddpm-ref demo`: it learns to draw digits in a few minutes and shows how."""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Texts as written; defaults shown where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _parser(argv: list[str] | None = None) -> argparse.ArgumentParser:
    """All commands; of experiments that argv does not name only what `--help` lists, for they take time to load."""
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
    options.shared(demo, "where to write (runs/demo, or the first of runs/demo-2, -3 … that is new)")
    options.drawing(demo)
    demo.add_argument("--steps", type=int, help=f"training steps ({RECIPES['digits'][0]})")
    demo.add_argument("--resume", metavar="FOLDER", help="go on with a demo that was stopped")
    demo.set_defaults(**{k: None for k in options.NETWORK_OPTIONS}, preset="digits", data="digits", schedule="linear",
                      T=1000, dtype="float32", save_every=None, log_every=None)  # fmt: skip

    train = command(
        "train",
        "train a network on your own images",
        "\nSIGINT (Ctrl-C) and SIGTERM finish the step, save and exit; --resume goes on bit for bit.\n\n"
        "examples:\n  ddpm-ref train --preset mnist --data train-images-idx3-ubyte.gz\n"
        "  ddpm-ref train --preset cifar10 --data cifar-10-batches-bin --micro-batch 8\n"
        "  ddpm-ref train --preset mnist --data my-photos --image-size 32\n\n" + options.recipes(),
    )
    options.shared(train, "where to write (runs/PRESET, or the first of runs/PRESET-2, -3 … that is new)")
    options.training(train)

    sample = command(
        "sample", "draw images from a checkpoint", "\nWrites samples.npz, samples.png, denoising.png and denoising.gif."
    )
    options.shared(
        sample, "where to write (samples-SEED in the run's folder, or the first of samples-SEED-2, -3 … that is new)"
    )
    options.drawing(sample, checkpoint=True)

    evaluate = command(
        "evaluate",
        "draw as many images as were held out and judge them beside these",
        "\nFor labelled data. Prints class shares by a classifier, its mean top-class probability, the Fréchet\n"
        "distance on raw pixels to the training images and the median distance to the nearest of them, each\n"
        "with its limit (chosen for the digits). Exits with 1 if one is broken.",
    )
    options.shared(
        evaluate, "where to write (evaluation-SEED in the run's folder, or the first of -2, -3 … that is new)"
    )
    options.drawing(evaluate, checkpoint=True, count=False)

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

    for name, text in EXPERIMENTS.items():
        if argv is None or name in argv:
            experiment = _experiment(name)
            experiment.add_options(command(name, text, experiment.MORE))
        else:
            command(name, text)
    return parser


def _experiment(name: str) -> Any:
    return importlib.import_module(f"ddpm_ref.experiments.{name}")


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
    parser = _parser(argv)
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
            if args.command in EXPERIMENTS:
                return int(_experiment(args.command).run(args))
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
        less = {"train": "--micro-batch", "likelihood": "--batch", "rate_distortion": "--batch"}
        print(
            f"ddpm-ref: out of memory ({error}); a smaller {less.get(args.command, '--draw-batch')} needs less",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("ddpm-ref: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
