# SDM 25.6.2, table 28-4: MOV-DR exiting.
#? set primary 23
#? expect MOV_DR qual=0x107 length=3
#? expect MOV_DR qual=0x216 length=3
#? expect HLT
    mov %rcx, %dr7
    mov %dr6, %rdx
    hlt
