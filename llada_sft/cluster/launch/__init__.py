"""On the login node: from a config to a job.

launcher.py            what `launch.py` and `llada-sft resume` do
preflight.py           what would end the job on its nodes; place.py: can run.root be used?
prepare.py             config -> run directory
snapshot.py            code and versions that are kept with it; origin.py: where they came from
submit.py              run directory -> job, by submitit
batch_script.py        the batch script; sbatch_environment.py: which variables sbatch gets
local.py               the ranks on this machine instead
ports.py               the port at which the ranks meet
"""
