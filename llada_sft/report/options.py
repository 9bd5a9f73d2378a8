"""The arguments of `llada-sft report`; imports nothing that the other commands do not need."""

import argparse

from llada_sft.entry import not_empty, path_argument


def add_report(report: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    report.add_argument(
        "runs", nargs="+", metavar="RUN", type=not_empty, help="a run directory, or its name"
    )
    where = report.add_mutually_exclusive_group()
    where.add_argument(
        "--out",
        type=path_argument,
        metavar="FILE",
        help="default: RUN/report.html; of several runs ./report.html",
    )
    where.add_argument(
        "--serve",
        type=int,
        nargs="?",
        const=0,
        metavar="PORT",
        help="serve it on this machine only, up to date during the run; default: a free port",
    )
