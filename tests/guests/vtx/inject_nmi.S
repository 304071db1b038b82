# SDM 27.6.1, 27.7.1: an injected NMI is delivered through gate 2 and blocks NMIs; IRET unblocks.
#? set pin 3
#? set pin 5
#? inject 0x80000202
#? expect VMCALL vector=2 interruptibility=8
#? do iret
#? expect HLT interruptibility=0
    hlt
