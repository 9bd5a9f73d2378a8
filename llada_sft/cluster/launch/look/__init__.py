"""What a launch would be, before anything is written.

preview.py   --print-config, --plan and --dry-run; the summary that every launch prints
measured.py  the speed that a run has had, for the plan
"""
