"""`python -P -m tokentape_producer batch run …`: `tokentape batch run …`, where that command is not on PATH."""

from tokentape.cli import main

if __name__ == "__main__":
    main()
