# SDM 26.1.3: without "use MSR bitmaps", every RDMSR and WRMSR exits.
#? clear primary 28
#? expect RDMSR
#? expect WRMSR
#? expect HLT
    mov $0x174, %ecx
    rdmsr
    wrmsr
    hlt
