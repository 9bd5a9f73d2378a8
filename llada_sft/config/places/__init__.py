"""Files that a config is made of, and files that it names.

presets.py   the preset of a cluster, by its name; a run's values over it
paths.py     the paths in a config, made absolute
"""
