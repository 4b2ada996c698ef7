"""`python -m worker` is the command `reconciler`."""

from worker.cli import main

main(prog_name="reconciler")
