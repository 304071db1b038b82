# SDM 25.6.2: MONITOR exiting and MWAIT exiting; the MWAIT qualification says whether monitoring is armed.
#? set primary 29
#? set primary 10
#? expect MONITOR length=3
#? expect MWAIT length=3
#? expect HLT
    mov $0x5000, %eax
    xor %ecx, %ecx
    xor %edx, %edx
    monitor
    mwait
    hlt
