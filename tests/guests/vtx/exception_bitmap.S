# SDM 25.6.3, 28.2.2: an exception whose bit is set exits with its interruption information.
#? field 0x4004 = 0x40
#? expect EXCEPTION_OR_NMI info=0x80000306
    ud2
