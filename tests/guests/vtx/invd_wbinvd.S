# SDM 26.1.2, 25.6.2: INVD exits unconditionally; WBINVD only with "WBINVD exiting".
#? expect INVD length=2
#? expect HLT
#? set secondary 6
#? expect WBINVD length=2
#? expect HLT
    invd
    wbinvd
    hlt
    wbinvd
    hlt
