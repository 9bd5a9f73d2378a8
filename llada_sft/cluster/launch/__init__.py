"""What runs on the login node: from a config to a job.

launcher.py            what `launch.py` and `llada-sft resume` do
preflight.py           problems that would end the job on its nodes; place.py: those of run.root
can_start.py           whether SLURM can ever start the job
prepare.py             config -> run directory
snapshot.py            the code and versions kept with a run; origin.py: where they came from
submit.py              run directory -> job, with submitit
batch_script.py        the batch script; sbatch_environment.py: the variables that sbatch gets
local.py               the ranks on this machine, without SLURM
ports.py               the port at which the ranks meet
"""
