"""Validation: the same rows with the same masks each time, on any ranks.

rows.py     the rows of a rank
batches.py  these rows as micro-batches that are masked once and for all
"""
