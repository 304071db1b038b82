# SDM table 28-7: bit 8 is clear when the access was to a paging-structure entry.
#? map 0x400000 0
#? expect EPT_VIOLATION qualmask=0x181:0x081 gpa=0x400000
    mov $0x400000, %rax
    mov %rax, %cr3
    hlt
