"""`python -m turtles`: the same program as `turtles`."""

from turtles.tools.cli import main

main()
