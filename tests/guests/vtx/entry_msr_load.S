# SDM 27.4: the VM-entry MSR-load area; a bad entry fails with reason 34 and its number.
#? entrymsr 0xc0000081 0x1234
#? expect HLT
#? check state star 0x1234
#? entrymsr 0xc0000100 0
#? expect ENTRY_MSR_LOAD qual=1
    hlt
    hlt
