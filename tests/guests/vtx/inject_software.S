# SDM 27.6.1: an injected software interrupt pushes RIP plus the VM-entry instruction length.
#? field 0x401a = 2
#? inject 0x80000421
#? expect VMCALL vector=0x21 stack0=0x8002
    hlt
