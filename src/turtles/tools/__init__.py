"""Tools: the command line and what it shows, machines put together from board, L0 and guests.

The top layer: nothing imports it. Not here: anything that a guest could see.
"""
