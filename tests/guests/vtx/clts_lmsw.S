# SDM 26.1.3, table 28-3: CLTS exits when CR0.TS is host-owned and set in the shadow; LMSW with its source.
#? field 0x6000 = 0x8
#? field 0x6004 = 0x8
#? expect CR_ACCESS qual=0x20 length=2
#? expect CR_ACCESS qual=0x10030 length=3
#? expect HLT
    clts
    mov $1, %eax
    lmsw %ax
    hlt
