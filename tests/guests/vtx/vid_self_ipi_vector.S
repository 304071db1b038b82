# SDM 30.5: a self-IPI with a vector below 16 causes an APIC-write exit.
#? set primary 21
#? set secondary 4
#? set secondary 9
#? virtualapic
#? expect APIC_WRITE qual=0x3f0 rip=after
#? expect HLT
    mov $0x83f, %ecx
    mov $0xf, %eax
    xor %edx, %edx
    wrmsr
after:
    hlt
