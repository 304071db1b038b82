# SDM 25.6.2: RDRAND exiting and RDSEED exiting.
#? set secondary 11
#? expect RDRAND infomask=0x1878:0x1018
#? expect HLT
    rdrand %rbx
    hlt
