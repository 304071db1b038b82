# SDM 28.2.4: an exit during event delivery reports the event in the IDT-vectoring information.
#? field 0x4004 = 0x2000
#? field 0x4812 = 0x5f
#? expect EXCEPTION_OR_NMI info=0x80000b0d idt=0x80000306
    ud2
