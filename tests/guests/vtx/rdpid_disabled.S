# SDM 25.3: without "enable RDTSCP" RDPID is #UD too.
#? clear secondary 3
#? field 0x4004 = 0x40
#? expect EXCEPTION_OR_NMI info=0x80000306 rip=start
    rdpid %rbx
    hlt
