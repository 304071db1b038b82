# Compiles a directory of newlib's mathematics, as its own build would: make, the compiler and the assembler as
# processes of their own for each file. FILES: how many (all: 135); OUT: where objects go.
HERE := $(dir $(lastword $(MAKEFILE_LIST)))newlib
CC := gcc
# Only the compiler's own headers and newlib's: the same on every machine.
CFLAGS := -O2 -w -nostdinc -isystem $(shell $(CC) -print-file-name=include) \
	-I$(HERE) -I$(HERE)/libc/include -I$(HERE)/libm/common -D_LIBM -D_COMPILING_NEWLIB -fno-builtin
FILES := 135
OUT := /tmp/build
SOURCES := $(wordlist 1,$(FILES),$(sort $(wildcard $(HERE)/libm/math/*.c)))
OBJECTS := $(SOURCES:$(HERE)/libm/math/%.c=$(OUT)/%.o)

all: $(OBJECTS)

$(OUT)/%.o: $(HERE)/libm/math/%.c
	$(CC) $(CFLAGS) -c $< -o $@
