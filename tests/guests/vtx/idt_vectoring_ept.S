# SDM 28.2.4: an EPT violation while an event's frame is pushed.
#? do reg rsp = 0x600000
#? unmap 0x400000
#? expect EPT_VIOLATION idt=0x80000306 qualmask=0x2:0x2
    ud2
