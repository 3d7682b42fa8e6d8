/*
 * Prints what the records of a log hold, each in a line: its number, its tag, and its bytes,
 * or "damaged" in their place; the bytes are taken to end with the line. Arguments: the
 * backend's socket; and, if all of them are to be given up, "clear".
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "paste_guest.h"

static uint64_t newest;

static void fail(const char *what) {
    fprintf(stderr, "read_log: %s: %s\n", what, paste_error());
    exit(1);
}

static void print(void *arg, const struct paste_record *record) {
    (void)arg;
    newest = record->id;
    printf("%" PRIu64 " %.*s: ", record->id, (int)record->tag_len, (const char *)record->tag);
    if (record->num_damaged > 0) {
        printf("damaged\n");
        return;
    }
    for (uint32_t i = 0; i < record->num_pieces; i++) {
        const struct paste_buf *piece = &record->piece[i];
        fwrite(piece->p + piece->off, 1, piece->len, stdout);
    }
}

int main(int argc, char **argv) {
    struct paste_port *port;
    struct paste_found found;
    struct paste_log_usage usage;
    if (argc < 2)
        return 2;
    if (paste_open(argv[1], NULL, &port) != PASTE_OK)
        fail("open");
    if (paste_log_open(port, print, NULL, &found) != PASTE_OK)
        fail("the log");
    if (argc > 2) {
        if (paste_log_give_up(port, newest) != PASTE_OK)
            fail("give up");
        do {
            if (paste_poll(port, 100) < 0 || paste_log_usage_of(port, &usage) != PASTE_OK)
                fail("poll");
        } while (usage.buffers > 0);
    }
    printf("%" PRIu64 " records, %" PRIu64 " lost, %" PRIu64 " damaged\n", found.records,
           found.lost_records, found.damaged_pieces);
    return paste_close(port) == PASTE_OK ? 0 : 1;
}
