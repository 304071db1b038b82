# SDM 26.2, 28.2.2: an external interrupt exits; it is not acknowledged, so no vector is reported.
#? kick
#? expect EXTERNAL_INTERRUPT info=0
    jmp .
