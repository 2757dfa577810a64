"""`python -m codesign` is the command line."""

from codesign.cli.main import main

main()
