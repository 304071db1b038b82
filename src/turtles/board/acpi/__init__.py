"""ACPI: an encoder for the little AML that is needed, the DSDT, and the tables that lead to it."""
