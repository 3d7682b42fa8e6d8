/*
 * Loses its channel while it has a log. Says "ready" when two records are in it and one of
 * them is committed, "lost" when the backend is gone, and ends when another one has come and
 * the log was opened again. Argument: the backend's socket.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "paste_guest.h"

static unsigned failures, visited;

static void expect(int line, int32_t got, int32_t want) {
    if (got == want)
        return;
    failures++;
    fprintf(stderr, "lost.c:%d: %d and not %d: %s\n", line, got, want, paste_error());
}
#define EXPECT(call, want) expect(__LINE__, (call), (want))

/* Only what was committed needs to be there. */
static void visit(void *arg, const struct paste_record *record) {
    const struct paste_buf *piece = record->piece;
    (void)arg;
    visited++;
    EXPECT(record->num_pieces == 1 && record->num_damaged == 0, 1);
    EXPECT(piece->len == 6 && memcmp(piece->p + piece->off, "hello\n", 6) == 0, 1);
    EXPECT(record->tag_len == 3 && memcmp(record->tag, "tag", 3) == 0, 1);
    EXPECT(record->time_ns == 77 && record->kind == 3, 1);
}

static struct paste_buf hello(struct paste_port *port) {
    struct paste_buf buf;
    while (paste_alloc(port, &buf) == PASTE_EBUSY)
        EXPECT(paste_poll(port, 10) >= 0, 1);
    memcpy(buf.p + buf.off, "hello\n", 6);
    buf.len = 6;
    return buf;
}

/* Polls until a slot of this kind is passed. */
static void wait_for(struct paste_port *port, uint32_t kind) {
    struct paste_ring *ring = paste_ring_of(port);
    for (;;) {
        if (paste_poll(port, 100) < 0)
            return;
        while (ring->head != ring->tail) {
            uint32_t was = ring->slot[ring->head].kind;
            ring->head = paste_ring_next(ring, ring->head);
            if (was == kind)
                return;
        }
    }
}

int main(int argc, char **argv) {
    struct paste_port *port;
    struct paste_found found;
    struct paste_log_usage usage;
    struct paste_buf piece, held, stored;
    struct paste_record record;
    uint64_t first = 0, id = 0;
    uint32_t index = 0;
    if (argc != 2 || paste_open(argv[1], NULL, &port) != PASTE_OK)
        return 2;
    EXPECT(paste_log_open(port, visit, NULL, &found), PASTE_OK);
    EXPECT(found.records == 0 && visited == 0, 1);

    memset(&record, 0, sizeof record);
    record.kind = 3;
    record.time_ns = 77;
    record.tag = (const uint8_t *)"tag";
    record.tag_len = 3;
    record.piece = &piece;
    record.num_pieces = 1;
    piece = hello(port);
    EXPECT(paste_log_append(port, &record, &first), PASTE_OK);
    EXPECT(paste_log_commit(port, &id), PASTE_OK);
    wait_for(port, PASTE_FLUSHED);
    EXPECT(paste_is_durable(port, id), 1);
    stored = hello(port);
    EXPECT(paste_store(port, &stored, &index), PASTE_OK);
    held = hello(port);
    uint32_t logged = piece.index;
    piece = hello(port);
    EXPECT(paste_log_append(port, &record, &id), PASTE_OK);
    printf("ready\n");
    fflush(stdout);

    wait_for(port, PASTE_LOST);
    for (int opened = 0; opened < 2; opened++) {
        EXPECT(paste_log_append(port, &record, NULL), PASTE_ELOST);
        EXPECT(paste_log_commit(port, NULL), PASTE_ELOST);
        EXPECT(paste_log_give_up(port, first), PASTE_ELOST);
        EXPECT(paste_log_usage_of(port, &usage), PASTE_ELOST);
        EXPECT(paste_stored(port, index, &stored), PASTE_ENOTSTORED);
        EXPECT(paste_send_stored(port, 1, logged, 128, 1, 0, 0), PASTE_ENOTSTORED);
        EXPECT(paste_unstore(port, index), PASTE_ENOTSTORED);
        EXPECT(paste_store(port, &held, NULL), PASTE_ESTALE);
        EXPECT(paste_flush(port, &held, 1, NULL), PASTE_ESTALE);
        if (!opened) {
            EXPECT(paste_flush(port, NULL, 0, NULL), PASTE_ELOST);
            EXPECT(paste_log_open(port, visit, NULL, &found), PASTE_ELOST);
            printf("lost\n");
            fflush(stdout);
            wait_for(port, PASTE_OPENED);
        }
    }
    EXPECT(paste_log_open(port, visit, NULL, &found), PASTE_OK);
    /* The memory of the region has outlived the backend, and the second record with it, but
     * its buffer was not claimed: nobody was promised it, and it is left out. */
    EXPECT(found.records == 1 && visited == 1 && found.lost_records == 0, 1);
    EXPECT(found.dropped == 1 && found.damaged_pieces == 0 && found.created == 0, 1);
    EXPECT(paste_stored(port, logged, &stored), PASTE_OK);
    EXPECT(stored.p != NULL && stored.index == logged, 1);
    EXPECT(paste_stored(port, index, &stored), PASTE_ENOTSTORED);
    piece = hello(port);
    EXPECT(paste_log_append(port, &record, &id), PASTE_OK);
    EXPECT(id > first, 1);
    EXPECT(paste_log_commit(port, &id), PASTE_OK);
    wait_for(port, PASTE_FLUSHED);
    EXPECT(paste_is_durable(port, id), 1);
    EXPECT(paste_close(port), PASTE_OK);
    return failures != 0;
}
