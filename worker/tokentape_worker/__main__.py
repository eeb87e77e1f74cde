"""`python -P -m tokentape_worker`: the worker without the `tokentape` command."""

from .commands import worker

if __name__ == "__main__":
    worker(prog_name="tokentape-worker")
