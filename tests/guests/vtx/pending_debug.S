# SDM 27.7.3: pending debug exceptions of the VMCS are delivered after the entry.
#? field 0x4004 = 0x2
#? field 0x6820 = 0x102
#? field 0x6822 = 0x4000
#? expect EXCEPTION_OR_NMI info=0x80000301 qual=0x4000 rip=start
start:
    nop
