# SDM 28.2.2: #GP with a selector error code.
#? field 0x4004 = 0x2000
#? expect EXCEPTION_OR_NMI info=0x80000b0d error=0x1f8
    mov $0x1f8, %eax
    mov %eax, %fs
