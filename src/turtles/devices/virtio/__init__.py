"""virtio 1.x over PCI: split virtqueues, the modern transport, block and entropy devices."""
