"""The embedded default: a task that a tiny LLaDA really learns on two CPU cores in minutes.

__main__.py    `make demo`
data.py        its rows and its tokenizer
evaluation.py  how well a model answers the held-out prompts
plot.py        the loss curve
"""
