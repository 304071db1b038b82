# SDM 27.6.1: an injected external interrupt is delivered through the IDT before the first instruction.
#? field 0x6820 = 0x202
#? inject 0x80000030
#? expect VMCALL vector=0x30
    hlt
