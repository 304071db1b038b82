# SDM 25.6.2: RDPMC exiting.
#? set primary 11
#? expect RDPMC length=2
#? expect HLT
    xor %ecx, %ecx
    rdpmc
    hlt
