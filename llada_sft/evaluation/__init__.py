"""EVALUATION: likelihoods of given answers, and the tasks of lm-evaluation-harness.

command.py       `llada-sft eval`: looks at what it is given, and starts it
job.py           the same as a SLURM job
settings.py      config/eval/ -> settings; plan.py: one evaluation, as its processes get it
__main__.py      a process: run.py has its two steps, for each task
engine.py        requests -> answers; answer_cache.py: those that are known already
scoring.py       answers in their contexts -> likelihoods, many of them together
texts.py         prompts and answers: texts -> ids -> texts
loaded.py        a model directory
harness/         the side of lm-evaluation-harness: model, tasks, results
"""
