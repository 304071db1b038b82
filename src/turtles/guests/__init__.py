"""Guests: loaders of kernels, and images built from distribution packages.

A loader turns a file into an `InitialState`: registers by name and bytes to write, nothing that runs.
Not here: how a VMCS holds that state (the machine's glue), devices, firmware.
"""
