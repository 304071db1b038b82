# SDM 26.3: without "enable RDTSCP", RDTSCP is an invalid opcode.
#? clear secondary 3
#? expect VMCALL vector=6
    rdtscp
