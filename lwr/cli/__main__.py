"""Run the command line: `python -m lwr.cli`."""

from lwr.cli.app import main

main()
