"""The command: applies each mutant to a copy of the tree, runs its tests and prints a table."""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.mutants import cluster, data, mathematics, records, report, starting, training
from tests.mutants.mutant import Mutant, chosen, problems
from tests.mutants.runner import Result, check_unchanged, copy_tree, import_libraries, run

ROOT = Path(__file__).parents[2]
MUTANTS: Sequence[Mutant] = (
    *mathematics.MUTANTS,
    *data.MUTANTS,
    *records.MUTANTS,
    *training.MUTANTS,
    *cluster.MUTANTS,
    *report.MUTANTS,
    *starting.MUTANTS,
)
# Of all mutants that are run, equivalent ones among them.
LEAST_KILLED = 0.95


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for.

    Returns:
        0 when at least 95 of 100 mutants are killed; 1 when fewer are, or the list is wrong.
    """
    options = _options(arguments)
    mutants = chosen(MUTANTS, options.only)
    if options.list:
        print(*(f"{mutant.name}  [{mutant.tests}]" for mutant in mutants), sep="\n")
        return 0
    if wrong := problems(mutants, ROOT):
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    if not mutants:
        print(f"--only {options.only}: no mutant has this in its name; see --list", file=sys.stderr)
        return 1
    import_libraries()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = [copy_tree(ROOT, Path(folder) / f"tree_{i}") for i in range(options.jobs)]
        tests = sorted({test for mutant in mutants for test in mutant.test_ids})
        if output := check_unchanged(tests, trees[0]):
            print(output, "the tests fail without any mutant", sep="\n", file=sys.stderr)
            return 1
        results = list(map(_shown, run(mutants, trees)))
    return report(results)


def report(results: Sequence[Result]) -> int:
    """Print the totals, and return the exit code."""
    totals = Counter(result.outcome for result in results)
    print(f"{totals['killed']} of {len(results)} killed", end="")
    others = ", ".join(f"{count} {what}" for what, count in totals.items() if what != "killed")
    print(f"; {others}" if others else "")
    return int(totals["killed"] < LEAST_KILLED * len(results))


def _shown(result: Result) -> Result:
    print(f"{result.outcome:<14}  {result.mutant.name}  ({result.detail})", flush=True)
    return result


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the mutants and their tests")
    parser.add_argument("--only", default="", metavar="TEXT", help="those with this in their name")
    parser.add_argument("--jobs", type=int, default=2, help="mutants that run at a time")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
