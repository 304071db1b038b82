# SDM 27.6.2: injection of "other event", vector 0, makes a monitor-trap-flag exit pending on the first boundary.
#? inject 0x80000700
#? expect MONITOR_TRAP rip=start
#? expect HLT
    hlt
