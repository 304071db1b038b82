# SDM 26.2: with bit 14 set, #PF exits only if error code AND mask = match.
#? field 0x4004 = 0x4000
#? field 0x4006 = 2
#? field 0x4008 = 2
#? expect VMCALL vector=14
#? do skiphandler 3
#? expect EXCEPTION_OR_NMI error=2
    movabs $0x4000000000, %rbx
    mov (%rbx), %al
    nop
    movb $1, (%rbx)
