"""The command line of `launch.py` and `llada-sft launch`, which are the same."""

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from llada_sft import __version__
from llada_sft.entry import exit_code, not_empty
from llada_sft.errors import ConfigError

if TYPE_CHECKING:
    from llada_sft.cluster.launch.request import LaunchOptions

DESCRIPTION = "Fine-tune LLaDA: one config, one command, on SLURM or with --local on this machine."

EPILOG = """\
Launching the same config again continues the run from its last checkpoint.

examples:
  {launch} --config config/zero3.yaml --nodes 4 run.name=first --plan
  {launch} --config config/zero3.yaml --nodes 4 run.name=first --follow
  {launch} --config config/zero3.yaml --cluster mine run.name=second --after runs/first
  {launch} --config config/zero3.yaml --nodes 4 run.name=third --sweep optim.lr=1e-5,2e-5
  {launch} --config config/demo.yaml --local train.max_steps=20
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of `launch.py`."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG.format(launch="launch.py"),
    )
    version = f"llada-sft {__version__}"
    parser.add_argument("--version", action="version", version=version)
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what a launch can be asked for."""
    parser.add_argument(
        "--config", required=True, metavar="FILE", type=not_empty, help="the run, see config/"
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="the same as slurm.nodes=N")
    parser.add_argument(
        "--cluster", metavar="NAME", help="values of config/cluster/NAME.yaml, or of a file"
    )
    parser.add_argument(
        "--after", metavar="RUN|JOB", help="start when that run's last job, or that job, is over"
    )
    add_where(parser)
    parser.add_argument("--follow", action="store_true", help="show rank 0's log until the end")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
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
    of_plan.add_argument(
        "--measured", metavar="RUN", help="take the speed of this run directory instead of --mfu"
    )
    of_plan.add_argument("--tokens", type=float, metavar="N", help="of an epoch (llada-sft check)")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="change a key of the config"
    )


def add_where(parser: argparse.ArgumentParser) -> None:
    """Add the places other than a job of its own where the ranks may run."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="run all ranks on this machine")
    where.add_argument(
        "--here", action="store_true", help="run them in the allocation of this shell (salloc)"
    )


def main() -> int:
    """Run `launch.py` with the arguments of this process, and return its exit code."""
    arguments = parser().parse_intermixed_args()
    return exit_code(lambda: run(arguments, ["python", *sys.argv]))


def run(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Launch; `command` is what was typed, for the run directory."""
    # The imports create objects that stay: looking for garbage among them finds nothing.
    gc.disable()
    # Here, not above: Ctrl-C during the imports is to end without a traceback, too.
    from llada_sft.cluster.launch.request import LaunchOptions

    names = {option.name for option in fields(LaunchOptions)} & vars(arguments).keys()
    asked = {name: getattr(arguments, name) for name in names}
    options = LaunchOptions(**asked, command=command)
    launch = _launch_of(options)
    gc.freeze()
    gc.enable()
    return launch(options)


def _launch_of(options: "LaunchOptions") -> Callable[["LaunchOptions"], int]:
    """Import and return what does as the options ask, and no more than that."""
    if options.sweep:
        from llada_sft.cluster.sweep.launch_sweep import launch_sweep

        return launch_sweep
    if options.sweep_limit is not None:
        raise ConfigError("--sweep-limit: is for the runs of --sweep: remove it, or give that")
    if options.only_looks:
        from llada_sft.cluster.launch.look.preview import preview

        return preview
    from llada_sft.cluster.launch.launcher import launch

    return launch
