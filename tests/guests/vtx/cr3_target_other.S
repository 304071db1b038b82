# SDM 25.6.7, 26.1.3: a MOV to CR3 of a value that is no CR3-target value exits, with the register that holds it.
#? set primary 15
#? field 0x400a = 2
#? field 0x6008 = 0x11000
#? field 0x600a = 0x10008
#? expect CR_ACCESS qual=0x203 length=3
#? check field 0x6802 0x10008
#? expect HLT
    mov $0x10008, %rdx
    mov %rdx, %cr3
    mov $0x10000, %rdx
    mov %rdx, %cr3
    hlt
