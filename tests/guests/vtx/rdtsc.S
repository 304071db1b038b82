# SDM 25.6.2, 26.1.3: RDTSC and RDTSCP exit with "RDTSC exiting".
#? set primary 12
#? set secondary 3
#? expect RDTSC length=2
#? expect RDTSCP length=3
#? expect HLT
    rdtsc
    rdtscp
    hlt
