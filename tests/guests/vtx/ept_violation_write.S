# SDM table 28-7: a write to a readable, executable page: bits 3 and 5 tell what EPT allows.
#? map 0x400000 5
#? expect EPT_VIOLATION qual=0x1aa gpa=0x400010
#? map 0x400000 7
#? expect HLT
    movb $1, 0x400010
    hlt
