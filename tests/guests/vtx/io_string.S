# SDM table 28-5, 28-8: string I/O: string and REP bits, address size and segment in the instruction information.
#? set primary 24
#? expect IO qual=0x03f80010 linear=0x5000
#? do reg rsi = 0x5000
#? expect IO qual=0x03f80030 linear=0x5000 infomask=0x38380:0x18100
    mov $0x3f8, %edx
    mov $0x5000, %esi
    outsb
    mov $4, %ecx
    rep outsb
