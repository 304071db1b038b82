# SDM 27.3.1, 27.8: bad guest state fails the entry with reason 33 and bit 31.
#? field 0x6820 = 0
#? expect ENTRY_GUEST_STATE
    hlt
