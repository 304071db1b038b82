# SDM 28.2.2: with "acknowledge interrupt on exit" the exit reports the vector; without a vector, the spurious one.
#? set exit 15
#? interrupt 0x33
#? expect EXTERNAL_INTERRUPT info=0x80000033
#? kick
#? expect EXTERNAL_INTERRUPT info=0x800000ff
#? clear exit 15
#? interrupt 0x34
#? expect EXTERNAL_INTERRUPT info=0
    jmp .
