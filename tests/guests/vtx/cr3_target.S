# SDM 25.6.7: a MOV to CR3 of a CR3-target value does not exit.
#? set primary 15
#? field 0x400a = 1
#? field 0x6008 = 0x10000
#? expect HLT
    mov $0x10000, %rdx
    mov %rdx, %cr3
    hlt
