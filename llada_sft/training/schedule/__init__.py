"""The learning rate of a step.

learning_rate.py  from how much of the training is done when the step is made
plan.py           how long the training is: kept in checkpoints, planned again on changes
build.py          that of a checkpoint, or a new one
"""
