# SDM 27.6.1: an injected hardware exception with an error code.
#? inject 0x80000b0d 0x10
#? expect VMCALL vector=13 stack0=0x10
    hlt
