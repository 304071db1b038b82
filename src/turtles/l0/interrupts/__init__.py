"""Interrupts and NMIs on their way to L1 or L2."""
