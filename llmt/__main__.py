"""`python -m llmt`."""

from llmt.cli.app import main

main()
