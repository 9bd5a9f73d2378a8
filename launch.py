#!/usr/bin/env python
"""Fine-tune LLaDA: one config, one command, on SLURM or with --local on this machine."""

import argparse
import sys

from llada_sft import __version__
from llada_sft.entry import exit_code

_EPILOG = """\
Launching the same config again continues the run from its last checkpoint.

examples:
  launch.py --config config/zero3.yaml --nodes 4 run.name=first --plan
  launch.py --config config/zero3.yaml --nodes 4 run.name=first --follow
  launch.py --config config/zero3.yaml --nodes 4 run.name=first --sweep optim.lr=1e-5,2e-5
  launch.py --config config/demo.yaml --local train.max_steps=20
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    version = f"llada-sft {__version__}"
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("--config", required=True, metavar="FILE", help="the run, see config/")
    parser.add_argument("--nodes", type=int, metavar="N", help="the same as slurm.nodes=N")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="run all ranks on this machine")
    where.add_argument(
        "--here", action="store_true", help="run them in the allocation of this shell (salloc)"
    )
    parser.add_argument("--follow", action="store_true", help="show rank 0's log until the end")
    parser.add_argument(
        "--sweep",
        action="append",
        metavar="KEY=VALUE,VALUE",
        help="a run for each value; may be given repeatedly, for all combinations",
    )
    parser.add_argument(
        "--sweep-limit", type=int, metavar="K", help="at most K runs of the sweep at a time"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--dry-run", action="store_true", help="print the sbatch text and submit nothing"
    )
    what.add_argument(
        "--print-config", action="store_true", help="print the whole config and its arithmetic"
    )
    what.add_argument(
        "--plan", action="store_true", help="print memory, traffic, time and disk it will take"
    )
    what.add_argument(
        "--prepare", action="store_true", help="make the run directory and print its path"
    )
    of_plan = parser.add_argument_group("assumptions of --plan")
    of_plan.add_argument("--gpu", default="NVIDIA H100", metavar="NAME", help="as CUDA names it")
    of_plan.add_argument(
        "--mfu", type=float, default=0.4, metavar="SHARE", help="of the GPU's rate, reached"
    )
    of_plan.add_argument("--tokens", type=float, metavar="N", help="of an epoch (llada-sft check)")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="change a key of the config"
    )
    return parser


def main() -> int:
    arguments = parser().parse_intermixed_args()
    return exit_code(lambda: _launch(arguments))


def _launch(arguments: argparse.Namespace) -> int:
    # Here, not above: Ctrl-C during the imports is to end without a traceback, too.
    from llada_sft.cluster.launch.launcher import LaunchOptions, launch

    # What was not asked for is not passed: an older package does not know the newest options.
    asked = {name: value for name, value in vars(arguments).items() if value != _default(name)}
    options = LaunchOptions(**asked)
    if arguments.sweep:
        from llada_sft.cluster.launch.sweep import launch_sweep

        return launch_sweep(options)
    return launch(options)


def _default(name: str) -> object:
    return parser().get_default(name)


if __name__ == "__main__":
    sys.exit(main())
