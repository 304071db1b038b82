# SDM 27.7.1.2, 26.6.3: with virtual NMIs an injected NMI blocks virtual NMIs until IRET, which opens the NMI window.
#? set pin 3
#? set pin 5
#? set primary 22
#? inject 0x80000202
#? expect VMCALL vector=2 interruptibility=8
#? do iret
#? expect NMI_WINDOW interruptibility=0
    nop
    hlt
