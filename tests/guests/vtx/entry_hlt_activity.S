# SDM 27.7.2: entry into the HLT activity state; an injected interrupt wakes the processor.
#? field 0x4826 = 1
#? field 0x6820 = 0x202
#? inject 0x80000030
#? expect VMCALL vector=0x30
    hlt
