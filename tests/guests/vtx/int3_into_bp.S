# SDM 28.2.2, table 25-19: INT3 is a software exception (type 6); the instruction length is reported.
#? field 0x4004 = 0x8
#? expect EXCEPTION_OR_NMI info=0x80000603 length=1
    int3
