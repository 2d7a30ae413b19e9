"""`ddpm-ref check`: the report on the terminal, or as JSON."""

import argparse
import json
from dataclasses import MISSING, fields

from ddpm_ref.conformance import FUNCTIONS, PROPERTIES, AdapterError, Conventions, check

LISTING = """An adapter is a Python file or module (or, with :Name, an object or class in one) with any of the
functions below, and a dict `conventions` of what differs from the paper's choices. It need not import ddpm_ref.

Arrays are NumPy's, (N, *shape), in the declared precision; t is an int64 array (N,) in your own numbering, one step
for each image. Results: arrays, lists or torch tensors. Where your code
  takes one t for the batch    loop over the rows and concatenate;
  gives its network a scaled t undo that before calling `model`;
  draws its own noise          replace its generator for the call, as with unittest.mock.patch("torch.randn_like", …);
  cannot do it for these arguments   raise NotImplementedError: it counts as not offered.

    import numpy, my_project
    d = my_project.Diffusion(steps=1000)
    conventions = {"t_first": 0, "var": "beta_tilde", "clip": True}

    def betas():
        return d.betas

    def q_sample(x_0, t, eps):
        return d.add_noise(x_0, t, eps)

    def q_posterior(x_0, x_t, t):
        return d.posterior_mean(x_0, x_t, t), d.posterior_variance[t]
"""


def check_command(args: argparse.Namespace) -> int:
    """Run it; the exit status: 0 nothing broken, 1 something is, 2 the adapter failed."""
    if args.list:
        print(listing())
        return 0
    if args.adapter is None:
        raise ValueError("ADAPTER: wanted a file or module with the functions to check (see ddpm-ref check --list)")
    try:
        report = check(args.adapter, seed=args.seed, only=args.only)
    except AdapterError as error:
        raise ValueError(str(error)) from None
    print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) if args.json else report.table())
    return report.exit_status


def listing() -> str:
    """What an adapter may offer and declare, and what it is then held to."""
    lines = [LISTING, "Functions, all optional:", *(f"  {name}{what}" for name, what in FUNCTIONS.items())]
    lines += ["", "Conventions and their defaults, the paper's:"]
    for f in fields(Conventions):
        default = {} if f.default is MISSING else f.default
        lines.append(f"  {f.name} = {default!r}: {f.metadata['says']}")
    lines += ["", "Properties (id, equation, what):"]
    lines += [f"  {p.id:<16} {p.equation:<16} {p.title}" for p in PROPERTIES]
    return "\n".join(lines)
