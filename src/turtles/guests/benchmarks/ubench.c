/*
 * Micro-benchmarks that run natively and at every level: `ubench run SCALE [ROW...]` prints a line
 * "BENCH ROW OPERATIONS NANOSECONDS_PER_OPERATION" for each. `ubench time NAME COMMAND...` times a program,
 * `ubench mark NAME` says "BENCH begin.NAME 1 0" and waits until that has gone, `ubench clock` prints CLOCK_MONOTONIC. Times are the guest's own: whoever reads them compares the clocks.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define ARRAY_BYTES (8u << 20)  /* chase: larger than a second-level cache */
#define COPY_BYTES (1u << 20)
#define MATRIX 192
#define SORTED 50000

static volatile uint64_t sink; /* keeps results alive */

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint32_t next_random(uint32_t *state) {
    uint32_t x = *state;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return *state = x;
}

static void *must(void *memory) {
    if (memory == NULL || memory == MAP_FAILED) {
        perror("ubench: memory");
        exit(1);
    }
    return memory;
}

/* Each row runs n operations and returns the nanoseconds that they took. */

static uint64_t alu(uint64_t n) {
    uint64_t a = 1, b = 0x9e3779b97f4a7c15u, c = 0, begin = now();
    for (uint64_t i = 0; i < n; i++) {
        a = a * 0xbf58476d1ce4e5b9u + b;
        b ^= a >> 29;
        c = (c << 7 | c >> 57) + b;
        a += c;
        __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c));
    }
    uint64_t end = now();
    sink = a ^ b ^ c;
    return end - begin;
}

static uint64_t branch(uint64_t n) {
    uint32_t state = 2463534242u, h = 0;
    uint64_t begin = now();
    for (uint64_t i = 0; i < n; i++) {
        uint32_t x = next_random(&state);
        if (x & 4)
            h += x;
        else if (x & 16)
            h ^= x >> 3;
        else
            h -= 11;
        __asm__ volatile("" : "+r"(h));
    }
    uint64_t end = now();
    sink = h;
    return end - begin;
}

static int compare(const void *left, const void *right) {
    uint32_t a, b;
    memcpy(&a, left, sizeof a);
    memcpy(&b, right, sizeof b);
    return (a > b) - (a < b);
}

static uint64_t sort(uint64_t n) {
    uint32_t *values = must(malloc(SORTED * sizeof *values)), state = 88172645u;
    uint64_t spent = 0;
    for (uint64_t done = 0; done < n; done += SORTED) {
        for (unsigned i = 0; i < SORTED; i++)
            values[i] = next_random(&state);
        uint64_t begin = now();
        qsort(values, SORTED, sizeof *values, compare);
        spent += now() - begin;
        sink = values[SORTED / 2];
    }
    free(values);
    return spent;
}

static uint64_t chase(uint64_t n) {
    uint32_t count = ARRAY_BYTES / sizeof(uint64_t), state = 123456789u;
    uint64_t *next = must(malloc(ARRAY_BYTES)), at = 0;
    for (uint32_t i = 0; i < count; i++)
        next[i] = i;
    for (uint32_t i = count - 1; i > 0; i--) { /* one cycle through all (Sattolo) */
        uint32_t j = next_random(&state) % i;
        uint64_t kept = next[i];
        next[i] = next[j];
        next[j] = kept;
    }
    uint64_t begin = now();
    for (uint64_t i = 0; i < n; i++)
        at = next[at];
    uint64_t end = now();
    sink = at;
    free(next);
    return end - begin;
}

static uint64_t matmul(uint64_t n) {
    const unsigned m = MATRIX;
    double *a = must(malloc(m * m * sizeof *a)), *b = must(malloc(m * m * sizeof *b));
    double *c = must(calloc(m * m, sizeof *c));
    for (unsigned i = 0; i < m * m; i++) {
        a[i] = i % 7;
        b[i] = i % 5;
    }
    uint64_t begin = now();
    for (uint64_t done = 0; done < n; done += (uint64_t)m * m * m)
        for (unsigned i = 0; i < m; i++)
            for (unsigned k = 0; k < m; k++) {
                double factor = a[i * m + k];
                for (unsigned j = 0; j < m; j++)
                    c[i * m + j] += factor * b[k * m + j];
            }
    uint64_t end = now();
    sink = (uint64_t)c[m + 3];
    free(a);
    free(b);
    free(c);
    return end - begin;
}

static uint64_t copy(uint64_t n) {
    char *from = must(malloc(COPY_BYTES)), *to = must(malloc(COPY_BYTES));
    memset(from, 1, COPY_BYTES);
    memset(to, 2, COPY_BYTES);
    uint64_t begin = now();
    for (uint64_t i = 0; i < n; i++) {
        from[i % COPY_BYTES]++;
        memcpy(to, from, COPY_BYTES);
        __asm__ volatile("" : : "r"(to) : "memory");
    }
    uint64_t end = now();
    free(from);
    free(to);
    return end - begin;
}

static uint64_t system_call(uint64_t n) {
    uint64_t begin = now();
    for (uint64_t i = 0; i < n; i++)
        syscall(SYS_getppid);
    return now() - begin;
}

static uint64_t page_fault(uint64_t n) {
    char *pages = must(mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    madvise(pages, n * PAGE, MADV_NOHUGEPAGE);
    uint64_t begin = now();
    for (uint64_t i = 0; i < n; i++)
        pages[i * PAGE] = 1;
    uint64_t end = now();
    munmap(pages, n * PAGE);
    return end - begin;
}

static uint64_t fork_wait(uint64_t n) {
    uint64_t begin = now();
    for (uint64_t i = 0; i < n; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        if (child < 0 || waitpid(child, NULL, 0) < 0) {
            perror("ubench: fork");
            exit(1);
        }
    }
    return now() - begin;
}

/* One byte to and fro between two processes: an operation is one switch. */
static uint64_t context_switch(uint64_t n) {
    int there[2], back[2];
    char byte = 0;
    if (pipe(there) || pipe(back)) {
        perror("ubench: pipe");
        exit(1);
    }
    pid_t child = fork();
    if (child == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
            ;
        _exit(0);
    }
    uint64_t begin = now();
    for (uint64_t i = 0; i < n / 2; i++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            break;
    uint64_t end = now();
    close(there[1]);
    waitpid(child, NULL, 0);
    close(there[0]);
    close(back[0]);
    close(back[1]);
    return end - begin;
}

static uint64_t cpuid(uint64_t n) {
    uint64_t begin = now();
    for (uint64_t i = 0; i < n; i++) {
        uint32_t a = 0, b, c = 0, d;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    }
    return now() - begin;
}

static const struct {
    const char *name;
    uint64_t (*run)(uint64_t);
    double operations; /* at scale 1 */
    uint64_t multiple; /* of this many */
} rows[] = {
    {"alu", alu, 40e6, 1},          {"branch", branch, 20e6, 1},
    {"qsort", sort, 400e3, SORTED}, {"chase", chase, 4e6, 1},
    {"matmul", matmul, 28e6, (uint64_t)MATRIX *MATRIX *MATRIX},
    {"memcpy", copy, 400, 1},       {"syscall", system_call, 400e3, 1},
    {"fault", page_fault, 20e3, 1}, {"fork", fork_wait, 400, 1},
    {"ctxsw", context_switch, 40e3, 2}, {"cpuid", cpuid, 20e3, 1},
};

static int wanted(const char *name, char **names) {
    if (*names == NULL)
        return 1;
    for (; *names; names++)
        if (strcmp(*names, name) == 0)
            return 1;
    return 0;
}

static void report(const char *name, uint64_t operations, uint64_t ns) {
    printf("BENCH %s %llu %.3f\n", name, (unsigned long long)operations, (double)ns / (double)operations);
    fflush(stdout);
}

static int run(double scale, char **names) {
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t n = (uint64_t)(rows[i].operations * scale) / rows[i].multiple * rows[i].multiple;
        if (n == 0)
            n = rows[i].multiple;
        if (wanted(rows[i].name, names))
            report(rows[i].name, n, rows[i].run(n));
    }
    return 0;
}

static int time_program(char **arguments) {
    int status;
    uint64_t begin = now();
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        dup2(null, 1);
        execvp(arguments[1], arguments + 1);
        perror(arguments[1]);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0 || status != 0) {
        fprintf(stderr, "ubench: %s failed\n", arguments[0]);
        return 1;
    }
    report(arguments[0], 1, now() - begin);
    return 0;
}

/* What a console has been given is on its way through every level below for a while. */
static int mark(const char *name) {
    printf("BENCH begin.%s 1 0\n", name);
    fflush(stdout);
    tcdrain(1);
    usleep(100000);
    return 0;
}

int main(int count, char **arguments) {
    if (count == 2 && strcmp(arguments[1], "clock") == 0) {
        printf("BENCH clock 1 %llu\n", (unsigned long long)now());
        return 0;
    }
    if (count == 3 && strcmp(arguments[1], "mark") == 0)
        return mark(arguments[2]);
    if (count >= 4 && strcmp(arguments[1], "time") == 0)
        return time_program(arguments + 2);
    if (count >= 3 && strcmp(arguments[1], "run") == 0 && atof(arguments[2]) > 0)
        return run(atof(arguments[2]), arguments + 3);
    fputs("usage: ubench run SCALE [ROW...] | ubench time NAME COMMAND... | ubench mark NAME | ubench clock\n", stderr);
    return 2;
}
