# SDM 26.2: a triple fault exits with reason 2.
#? field 0x4812 = 0
#? expect TRIPLE_FAULT
    ud2
