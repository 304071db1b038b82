# SDM table 28-7: EPT violation by a data read of a page that is not present; linear and physical addresses.
#? unmap 0x400000
#? expect EPT_VIOLATION qual=0x181 gpa=0x400123 linear=0x400123
#? map 0x400000 7
#? expect HLT
    mov 0x400123, %al
    hlt
