"""`python -P -m tokentape_worker`: `tokentape worker`, where that command is not on PATH."""

import sys

from tokentape.cli import main

if __name__ == "__main__":
    main(["worker", *sys.argv[1:]])
