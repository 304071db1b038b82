# SDM 26.1.2: XSETBV exits unconditionally.
#? field 0x6804 |= 0x40000
#? expect XSETBV length=3
#? expect HLT
    xor %ecx, %ecx
    xor %edx, %edx
    mov $1, %eax
    xsetbv
    hlt
