# SDM 25.4.2: blocking by STI is saved when the next instruction exits.
#? expect HLT interruptibility=1
    sti
    hlt
