# SDM 25.11.2: VMREAD of a 16-bit or 32-bit field has the bits above it clear, whatever the region holds.
#? set secondary 14
#? shadow
#? shadowfield 0x0800 = 0x123456789
#? shadowfield 0x4800 = 0x123456789
#? expect HLT rbx=0x6789 rdx=0x23456789
    mov $0x0800, %eax
    vmread %rax, %rbx
    mov $0x4800, %eax
    vmread %rax, %rdx
    hlt
