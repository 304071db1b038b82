# SDM 28.2.1: #DB exit: the qualification has BS (bit 14).
#? field 0x4004 = 0x2
#? expect EXCEPTION_OR_NMI info=0x80000301 qual=0x4000
    pushfq
    orq $0x100, (%rsp)
    popfq
    nop
    nop
