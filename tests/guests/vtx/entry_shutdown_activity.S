# SDM 27.7.2: VM entry to the shutdown state executes nothing; an NMI wakes, here injected, which needs the active state.
#? inject 0x80000202
#? field 0x4826 = 2
#? expect VMCALL vector=2 activity=0
    ud2
