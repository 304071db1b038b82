"""Memory virtualization: ept01, ept12 as L1 wrote it, ept02 composed of both; guest page walks."""
