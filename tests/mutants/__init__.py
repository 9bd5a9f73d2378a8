"""Semantic mutants: small wrong changes of the package, each of which some test must notice.

    python -m tests.mutants [--list] [--only PATTERN] [--jobs 2]

    mutant.py      what a mutant is, and whether its text is still in the code
    runner.py      a copy of the tree for each job; one forked process runs the tests of one mutant
    mathematics.py, data.py, training.py, cluster.py    the mutants, by the part that they change

Run it by hand after a change of the tests or of much code: it takes minutes. The unit tests check
only that each mutant's text still occurs exactly once.
"""
