# SDM 28.4: the VM-exit MSR-store area.
#? exitmsr 0xc0000081
#? do reg star = 0x77
#? expect HLT
#? check exitmsr 0x77
    hlt
