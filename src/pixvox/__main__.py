"""``python -m pixvox`` is the command line."""

from pixvox.cli import main

main()
