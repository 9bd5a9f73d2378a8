"""`python -m llada_sft` is `llada-sft`."""

import sys

from llada_sft.cli import main

if __name__ == "__main__":
    sys.exit(main())
