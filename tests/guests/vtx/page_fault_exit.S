# SDM 28.2.1: a #PF exit has the linear address as qualification and the error code beside it.
#? field 0x4004 = 0x4000
#? expect EXCEPTION_OR_NMI info=0x80000b0e error=2 qual=0x4000000000
    movabs $0x4000000000, %rbx
    movb $1, (%rbx)
