"""What the paper printed: Ben-Yehuda et al., "The Turtles Project", OSDI 2010. Data only, none of it ours.

Figures that it gives in its text and tables are exact; those read off its drawings are good to about 0.5 %
(`DRAWN`). Its machine: one 2.9 GHz Xeon core; KVM as L0 and L1.
"""

from __future__ import annotations

from typing import Final

SOURCE: Final = "Ben-Yehuda et al., The Turtles Project, OSDI 2010"
MARK: Final = "the paper's own"
GHZ: Final = 2.9

# Table 2: host, guest (L1), nested (L2), nested with direct reads and writes of VMCSs (DRW).
COLUMNS: Final = ("host", "guest", "nested", "nested DRW")
KERNBENCH_S: Final = (324.3, 355.0, 406.3, 391.5)
SPECJBB_SCORE: Final = (90493.0, 83599.0, 77065.0, 78347.0)
VMWARE_L1: Final = {"kernbench": 0.1498, "SPECjbb": -0.0885}
"""VMware Server in KVM's place as L1: nested beside guest."""

# Figure 5 (drawn): shares of cycles, in percent, of guest, L1, L0 and mode switches.
SHARES: Final = ("guest", "L1", "L0", "switch")
CYCLES: Final = {
    ("kernbench", "nested"): (90.4, 1.39, 5.18, 3.05),
    ("kernbench", "nested DRW"): (90.7, 1.26, 4.44, 0.74),
    ("SPECjbb", "nested"): (92.1, 1.00, 5.01, 1.92),
    ("SPECjbb", "nested DRW"): (94.25, 0.92, 4.40, 0.44),
}

# Figure 6 (drawn): thousand cycles for an exit: single level, nested with DRW, nested.
EXIT_COLUMNS: Final = ("single level", "nested DRW", "nested")
EXITS: Final = {
    "external interrupt": (64.5, 147.0, 192.0),
    "port I/O": (12.3, 130.0, 183.0),
    "read MSR": (4.6, 86.0, 128.0),
    "CR access": (6.3, 38.0, 91.0),
    "APIC access": (11.8, 41.0, 88.0),
    "exception": (4.6, 21.0, 42.0),
    "interrupt window": (3.6, 32.0, 70.0),
    "CPUID": (2.8, 31.0, 64.0),
    "EPT violation": (24.0, 41.0, 49.0),
}
L1_EXITS: Final = {"port I/O": (31, 14), "CPUID": (13, 2)}
"""Exits that L1 makes while it handles one exit of L2: with and without those of VMREAD and VMWRITE."""

# Figures 7 and 8 (drawn): netperf TCP stream: megabits a second, per cent of the processor; message sizes.
NETPERF: Final = {
    "native": (940, 20),
    "single level, emulation": (251, 99),
    "single level, virtio": (936, 48),
    "single level, direct": (940, 25),
    "nested, emulation / emulation": (33, 99),
    "nested, virtio / emulation": (30, 99),
    "nested, virtio / virtio": (748, 99),
    "nested, direct / virtio": (931, 92),
    "nested, direct / direct": (940, 60),
}
MESSAGE_COLUMNS: Final = ("L0", "L2 direct / direct", "L2 direct / virtio")
MESSAGES: Final = {
    "16 B": (305, 277, 124),
    "64 B": (900, 837, 469),
    "128 B": (930, 940, 644),
    "512 B": (932, 940, 937),
}

# Figure 9 (drawn): what multi-dimensional paging gains over shadow-on-EPT.
MULTIDIM_GAIN: Final = {"kernbench": 3.47, "SPECjbb": 1.02, "netperf": 1.055}

# Figure 10 (drawn): mean cycles of a CPUID in a loop of 4 million; with L1, L0 and mode switches told apart.
CPUID_CYCLES: Final = {
    "single level": 2505,
    "nested": 58_497,
    "nested, L0 optimised": 42_999,
    "nested, DRW": 28_206,
    "nested, both": 11_906,
}
CPUID_SHARES: Final = {"single level": (0, 1506, 999), "nested": (7992, 38_502, 12_003)}
