# SDM 29.3.5: with EPT accessed and dirty flags enabled, entries are marked.
#? eptad
#? expect HLT
#? check ept 0x400000 0x300:0x100
#? expect HLT
#? check ept 0x400000 0x300:0x300
    mov 0x400000, %al
    hlt
    movb $1, 0x400000
    hlt
