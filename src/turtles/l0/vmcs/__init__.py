"""VMCS regions of L0: vmcs01 (runs L1), vmcs12 (L1's, cached), vmcs02 (built from both, runs L2)."""
