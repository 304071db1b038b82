# SDM 25.6.2, tables 28-10, 28-11: descriptor-table exiting.
#? set secondary 2
#? expect GDTR_IDTR infomask=0x30000000:0x20000000 qual=0x5000
#? expect GDTR_IDTR infomask=0x30000000:0x10000000
#? expect LDTR_TR infomask=0x30000000:0x30000000
#? expect LDTR_TR infomask=0x30000000:0x00000000
#? expect HLT
    xor %ebx, %ebx
    lgdt 0x5000(%rbx)
    sidt 0x5000(%rbx)
    ltr %ax
    sldt %ax
    hlt
