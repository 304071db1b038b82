# SDM 25.6.9: MSR bitmaps: read-low, read-high, write-low, write-high; other MSRs always exit.
#? set primary 28
#? msrbitmap read 0x10
#? msrbitmap write 0xc0000082
#? expect RDMSR length=2
#? expect WRMSR length=2
#? expect RDMSR
#? expect HLT
    mov $0x10, %ecx
    rdmsr
    mov $0x174, %ecx
    rdmsr
    mov $0xc0000082, %ecx
    rdmsr
    wrmsr
    mov $0x40000000, %ecx
    rdmsr
    hlt
