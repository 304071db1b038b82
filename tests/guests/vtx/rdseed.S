# SDM 25.6.2: RDSEED exiting; the information names the destination register and the operand's size.
#? set secondary 16
#? expect RDSEED infomask=0x1878:0x1018
#? expect HLT
    rdseed %rbx
    hlt
