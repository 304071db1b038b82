"""VT-x as L0 offers it to L1: instructions, routing of exits, entry into L2 and exit to L1."""
