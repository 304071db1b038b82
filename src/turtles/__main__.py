"""`python -m turtles`: the same program as `turtles`."""

from turtles.tools.program import program

program()
