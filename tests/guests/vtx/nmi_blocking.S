# SDM 27.6.1, 26.3: an injected NMI blocks NMIs until IRET.
#? set pin 3
#? set pin 5
#? set primary 22
#? inject 0x80000202
#? expect VMCALL vector=2 interruptibility=8
#? do iret
#? expect NMI_WINDOW
#? clear primary 22
#? expect HLT
    nop
    hlt
