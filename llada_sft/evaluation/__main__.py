"""A process of an evaluation: `rank` computes a share of the answers, `finish` writes the results.

    python -m llada_sft.evaluation rank PLAN
    python -m llada_sft.evaluation finish PLAN

PLAN is what `EvalPlan.to_json` returns. `llada-sft eval` and its batch script start these.
"""

import os
import sys

from llada_sft.entry import exit_code
from llada_sft.evaluation.plan import EvalPlan
from llada_sft.local_ranks import rank_of


def main(step: str, plan_text: str) -> int:
    """Run one step and return its exit code."""

    def command() -> int:
        from llada_sft.evaluation.run import compute_share, finish

        plan = EvalPlan.from_json(plan_text)
        if step == "rank":
            compute_share(plan, rank_of(os.environ))
        else:
            finish(plan)
        return 0

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
