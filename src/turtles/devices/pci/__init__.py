"""PCI: configuration space, the host bridge with its two configuration mechanisms, MSI-X."""
