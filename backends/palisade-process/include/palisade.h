/* How a native plugin talks to Palisade: version 1.
 *
 * A plugin is a shared library. It defines the variable `palisade_host_v1`, which the host fills in before the first
 * entry is called, and exports its entries: functions without parameters that return 0 for success, 75 to be tried again,
 * or another number for an error of their own.
 *
 *     #include "palisade.h"
 *     PALISADE_PLUGIN
 *     int32_t greet(void) {
 *         palisade_host_v1->output_write("hello", 5);
 *         return 0;
 *     }
 *
 *     cc -shared -fPIC -o plugin.so plugin.c
 *
 * The library may need the C and C++ standard libraries and no other, has no run path, no relocations in its code and no
 * executable stack. Its constructors run inside the jail, within the first call's quota, before the variable is filled in.
 * It may not end its process: that counts as a trap.
 *
 * A program is no plugin of this kind: its input, output and error text are its standard streams. When host functions are
 * granted to it, it calls them over two descriptors, one call at a time. All numbers are little-endian.
 *
 *     to descriptor 8:    'H', u32 length of the rest, u64 length of the name, name, u64 length of the input, input
 *     from descriptor 7:  'h', u32 length of the rest, u8 status (0 = result, 1 = error text), result
 */
#ifndef PALISADE_H
#define PALISADE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Functions of the host. All copy; none keeps a pointer. None may be called from a signal handler. */
typedef struct palisade_host_v1_table {
    /* 1. */
    uint32_t version;
    /* Size of this table in bytes; later versions only add to its end. */
    uint32_t size_bytes;
    /* Length of the input in bytes. */
    uint64_t (*input_len)(void);
    /* Copies at most `len` bytes of input, beginning at `offset`. Returns how many. */
    uint64_t (*input_read)(uint64_t offset, void *to, uint64_t len);
    /* Appends to the output. */
    void (*output_write)(const void *from, uint64_t len);
    /* Appends to the error text. */
    void (*error_write)(const void *from, uint64_t len);
    /* One log record: level 0 trace, 1 debug, 2 info, 3 warn, 4 error. */
    void (*log)(uint32_t level, const void *text, uint64_t len);
    /* Calls a host function by name. Low half: length of its result; high half: 0 = result, 1 = error text. */
    uint64_t (*host_call)(const char *name, uint64_t name_len, const void *from, uint64_t len);
    /* Copies at most `len` bytes of the last result, beginning at `offset`. Returns how many. */
    uint64_t (*host_result_read)(uint64_t offset, void *to, uint64_t len);
} palisade_host_v1_table;

extern const palisade_host_v1_table *palisade_host_v1;

/* Defines the variable; put it in one source file of the plugin. */
#define PALISADE_PLUGIN \
    __attribute__((visibility("default"))) const palisade_host_v1_table *palisade_host_v1 = 0;

#ifdef __cplusplus
}
#endif

#endif
