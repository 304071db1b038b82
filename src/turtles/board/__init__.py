"""The board: address map, buses, ACPI tables, and the wiring of the devices round the processor."""
