# SDM 25.6.2, table 28-3: CR3-load and CR3-store exiting; qualification: CR number, access type, register.
#? set primary 15
#? set primary 16
#? expect CR_ACCESS qual=0x203 length=3
#? expect CR_ACCESS qual=0x113 length=3
#? expect HLT
    mov $0x10000, %rdx
    mov %rdx, %cr3
    mov %cr3, %rcx
    hlt
