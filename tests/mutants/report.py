"""Mutants of report/."""

from tests.mutants.mutant import of_file

MUTANTS = (
    *of_file(
        "report/answers.py",
        "report/test_history.py",
        (
            "if known > step",
            "if known > step + 1000",
            "answers of an earlier attempt stay next to those of a later one",
        ),
        (
            "not 1 <= token[1] <= num_passes",
            "not 1 <= token[1]",
            "a pass after the last one is taken for an order",
        ),
    ),
    *of_file(
        "report/curves.py",
        "report/test_curves.py",
        (
            "merged[-1][0] > step",
            "merged[-1][0] > step + 1000",
            "the rows of an earlier attempt stay where a later one trained again",
        ),
        (
            "merged[-1][1] | given",
            "given",
            "a step loses the numbers of its validation",
        ),
    ),
    *of_file(
        "report/html.py",
        "report/test_page.py",
        ('"<>&\\u2028\\u2029"', '"&\\u2028\\u2029"', "a text ends the element of the data"),
        (
            "limits = limits.halved()",
            "break",
            "a page may be larger than its limit",
        ),
    ),
    *of_file(
        "report/serve.py",
        "report/test_command.py",
        ("len(hosts) == 1 and hosts[0]", "hosts and hosts[-1]", "two Host headers are accepted"),
        (
            "hmac.compare_digest(token.encode(), self.token.encode())",
            "token",
            "other users of the machine may read the page",
        ),
    ),
    *of_file(
        "report/thinned.py",
        "report/test_thinned.py",
        ("chosen = {0, len(values) - 1}", "chosen = {0}", "a curve loses its last point"),
        (
            "if len(known) < end - first:",
            "if not known:",
            "a gap next to numbers is closed",
        ),
    ),
)
