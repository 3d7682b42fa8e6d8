/*
 * A server that keeps each request where the NIC put it, and answers when it is durable.
 *
 *     cc -I guest-driver/include guest-driver/examples/c/log.c \
 *         target/release/libpasteguest.a -lpthread -ldl -lm -o log
 *     ./log /run/pasted/kv1.sock 7000
 *     ./log eth0 /dev/dax0.0 7000           in a virtual machine
 *     printf 'hello\nworld\n' | nc -N 10.7.0.3 7000
 *
 * A request is a line. It becomes a record of the region's log, which names the buffers that
 * the line lies in; nothing of it is copied. All lines of one batch are committed at once,
 * and each is answered with "logged". On start it says how many there are from before,
 * whatever has crashed meanwhile. The oldest are given up when the log takes half of the
 * region. Ends on SIGTERM or SIGINT.
 */
#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "paste_guest.h"

#define LINE 1 /* the kind of our records */
static const char ANSWER[] = "logged\n";
#define ANSWER_LEN (sizeof(ANSWER) - 1)

/* The beginning of a line whose end has not come yet, by the index of the flow. */
#define FLOWS_MAX (1u << 20)
#define PIECES_MAX 8
struct line {
    struct paste_buf piece[PIECES_MAX];
    uint32_t num_pieces;
};
static struct line *lines[FLOWS_MAX];

/* The first record that is not given up, 0 for none, and the last one. */
static uint64_t oldest, newest;
static volatile sig_atomic_t stop;

static void on_signal(int signal) {
    (void)signal;
    stop = 1;
}

static void fail(const char *what) {
    fprintf(stderr, "log: %s: %s\n", what, paste_error());
    exit(1);
}

/* A record from before. A store that serves what it keeps would index it here. */
static void found_record(void *arg, const struct paste_record *record) {
    uint64_t *count = arg;
    if (oldest == 0)
        oldest = record->id;
    newest = record->id;
    *count += record->kind == LINE && record->num_damaged == 0;
}

/* Whether there is one. If not, the channel was lost again, and PASTE_OPENED comes again. */
static int open_log(struct paste_port *port) {
    struct paste_found found;
    uint64_t count = 0;
    oldest = 0;
    newest = 0;
    int opened = paste_log_open(port, found_record, &count, &found);
    if (opened == PASTE_ELOST)
        return 0;
    if (opened != PASTE_OK)
        fail("the log");
    printf("found %" PRIu64 " lines, lost %" PRIu64 "\n", count,
           found.lost_records + found.damaged_pieces);
    fflush(stdout);
    return 1;
}

/* Gives back what has come of a line. What the log has by now it keeps. */
static void forget(struct paste_port *port, uint32_t flow) {
    struct line **line = &lines[flow % FLOWS_MAX];
    for (uint32_t i = 0; *line != NULL && i < (*line)->num_pieces; i++)
        paste_release(port, &(*line)->piece[i]);
    free(*line);
    *line = NULL;
}

/* Adds some bytes to the flow's line. 0, or -1: it is too long, or there is no memory. */
static int add(struct paste_port *port, uint32_t flow, struct paste_buf *buf, uint32_t len) {
    struct line **line = &lines[flow % FLOWS_MAX];
    if (*line == NULL)
        *line = calloc(1, sizeof **line);
    if (*line == NULL || (*line)->num_pieces == PIECES_MAX)
        return -1;
    struct paste_buf *piece = &(*line)->piece[(*line)->num_pieces++];
    *piece = *buf;
    piece->len = len;
    /* It stays when its slot is passed. If another line has brought it into the log, it
     * stays anyway. */
    paste_keep(port, buf);
    return 0;
}

/* Logs the lines that end in these bytes: how many, or -1. */
static int log_lines(struct paste_port *port, const struct paste_slot *slot) {
    struct paste_buf rest = slot->buf;
    int count = 0;
    while (rest.len > 0) {
        const uint8_t *start = rest.p + rest.off;
        const uint8_t *end = memchr(start, '\n', rest.len);
        uint32_t len = end == NULL ? rest.len : (uint32_t)(end - start) + 1;
        if (add(port, slot->flow, &rest, len) != 0)
            return -1;
        rest.off += len;
        rest.len -= len;
        if (end == NULL)
            return count;
        struct line *line = lines[slot->flow % FLOWS_MAX];
        struct paste_record record;
        memset(&record, 0, sizeof record);
        record.kind = LINE;
        record.time_ns = slot->time_ns;
        record.piece = line->piece;
        record.num_pieces = line->num_pieces;
        if (paste_log_append(port, &record, &newest) != PASTE_OK) {
            fprintf(stderr, "log: append: %s\n", paste_error());
            return -1;
        }
        if (oldest == 0)
            oldest = newest;
        /* Its buffers are the log's now. */
        line->num_pieces = 0;
        count++;
    }
    return count;
}

/* Answers so many lines. 0, or what a call failed with. */
static int answer(struct paste_port *port, uint32_t flow, int count) {
    while (count > 0) {
        struct paste_buf buf;
        int done = paste_alloc(port, &buf);
        if (done != PASTE_OK)
            return done;
        for (; count > 0 && buf.off + buf.len + ANSWER_LEN <= buf.size; count--) {
            memcpy(buf.p + buf.off + buf.len, ANSWER, ANSWER_LEN);
            buf.len += (uint32_t)ANSWER_LEN;
        }
        done = paste_send(port, flow, &buf, 0, PASTE_SEND_DURABLE);
        if (done != PASTE_OK) {
            paste_release(port, &buf);
            return done;
        }
    }
    return PASTE_OK;
}

/* Gives up a quarter of the records when the log takes half of the region, or three
 * quarters of its own room. */
static void make_room(struct paste_port *port) {
    struct paste_log_usage usage;
    if (paste_log_usage_of(port, &usage) != PASTE_OK)
        return;
    int crowded = 2 * (uint64_t)usage.buffers > usage.region_buffers ||
                  4 * usage.bytes_free < usage.bytes;
    /* What was given up last may be on its way yet. */
    if (crowded && oldest != 0 && usage.records > 1 && usage.records <= newest + 1 - oldest) {
        uint64_t last = oldest + (newest - oldest) / 4;
        if (paste_log_give_up(port, last) == PASTE_OK)
            oldest = last + 1;
    }
}

/* Works on a slot, and returns how many lines of it are to be answered, or -1. */
static int handle(struct paste_port *port, uint16_t tcp_port, struct paste_slot *slot) {
    switch (slot->kind) {
    case PASTE_DATA:
        return log_lines(port, slot);
    case PASTE_ACCEPTED:
    case PASTE_RESET:
    case PASTE_CLOSED:
        forget(port, slot->flow);
        return 0;
    case PASTE_FIN:
    case PASTE_REFUSED:
        return 0;
    case PASTE_LOST:
        /* With it go the flows, their buffers, and the log, but nothing in it. */
        fprintf(stderr, "log: the channel was lost: %s\n",
                slot->reason == 0 ? "the backend is gone" : paste_reason(slot->reason));
        for (uint32_t flow = 0; flow < FLOWS_MAX; flow++)
            forget(port, flow);
        return 0;
    case PASTE_OPENED:
        if (open_log(port) && paste_request_listen(port, tcp_port, 128, NULL) != PASTE_OK)
            fail("listen");
        return 0;
    default:
        return 0;
    }
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4) {
        fprintf(stderr, "usage: log SOCKET PORT | log INTERFACE REGION PORT\n");
        return 2;
    }
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    uint16_t tcp_port = (uint16_t)atoi(argv[argc - 1]);
    struct paste_options options;
    memset(&options, 0, sizeof options);
    options.name = "log.c";
    struct paste_port *port;
    int opened = argc == 3 ? paste_open(argv[1], &options, &port)
                           : paste_open_device(argv[1], argv[2], &options, &port);
    if (opened != PASTE_OK)
        fail("open");
    if (!open_log(port) || paste_listen(port, tcp_port, 128, NULL) != PASTE_OK)
        fail("listen");
    printf("listening on port %u\n", tcp_port);
    fflush(stdout);

    struct paste_ring *ring = paste_ring_of(port);
    int *count = calloc(ring->num_slots, sizeof *count);
    if (count == NULL)
        return 1;
    while (!stop) {
        if (paste_poll(port, 500) < 0)
            fail("poll");
        /* Everything that the batch has brought, then one commit, then the answers. */
        int lines_logged = 0;
        for (uint32_t cur = ring->head; cur != ring->tail; cur = paste_ring_next(ring, cur)) {
            count[cur] = handle(port, tcp_port, &ring->slot[cur]);
            lines_logged += count[cur] > 0;
        }
        if (lines_logged > 0 && paste_log_commit(port, NULL) != PASTE_OK)
            fprintf(stderr, "log: commit: %s\n", paste_error());
        for (; ring->head != ring->tail; ring->head = paste_ring_next(ring, ring->head)) {
            const struct paste_slot *slot = &ring->slot[ring->head];
            int lines_of = count[ring->head];
            /* One who gets no answer is not to take the next one for it. */
            if (lines_of < 0 || answer(port, slot->flow, lines_of) != PASTE_OK ||
                slot->kind == PASTE_REFUSED)
                paste_abort(port, slot->flow);
            else if (slot->kind == PASTE_FIN)
                paste_finish(port, slot->flow);
        }
        make_room(port);
    }
    free(count);
    if (paste_close(port) != PASTE_OK)
        fail("close");
    return 0;
}
