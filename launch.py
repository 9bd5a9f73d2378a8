#!/usr/bin/env python
"""Fine-tune LLaDA: one config, one command, on SLURM or with --local on this machine."""

import sys

from llada_sft.cluster.launch.command import main

if __name__ == "__main__":
    sys.exit(main())
