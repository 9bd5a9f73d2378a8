"""EVALUATION: likelihoods of given answers, and the side of lm-evaluation-harness.

scoring.py    answers in their contexts -> likelihoods, many of them together
"""
