"""Commands of `llada-sft` that have no room of their own.

of_runs.py        those that take a run: status, logs, cancel, resume, export, report
new_project.py    init
"""
