"""What runs on the login node: from a config to a run.

command.py     the command line of `launch.py`; completion.py: completes it in a shell
request.py     what a launch is asked for; look/: shows what it would be
launcher.py    what `launch.py` and `llada-sft resume` do
after.py       --after: the job that a new one waits for
prepare.py     config -> run directory
snapshot.py    the code and versions kept with a run; origin.py: where they came from
local.py       the ranks on this machine, without SLURM
here.py        the ranks in the present allocation; allocation.py: what that has
attended.py    what both have in common: signals, and how the run ended
ports.py       the port at which the ranks meet
"""
