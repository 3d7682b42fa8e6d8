/*
 * Uses paste_guest.h as it is not meant: every call has to answer with a code and a
 * message, and the port goes on. Arguments: the backend's socket, its address, and a TCP
 * port there for a connection to itself; and "mirror", if the host has to make the region
 * durable.
 */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "paste_guest.h"

static unsigned failures;
static int by_host;

/* A call that has to return this, with these words in the message. */
static void expect(int line, int32_t got, int32_t want, const char *words) {
    if (got == want && (want >= 0 || strstr(paste_error(), words) != NULL))
        return;
    failures++;
    fprintf(stderr, "misuse.c:%d: %d and not %d: %s\n", line, got, want, paste_error());
}
#define EXPECT(call, want, words) expect(__LINE__, (call), (want), (words))

/* An empty buffer; polls until there is one. */
static struct paste_buf take(struct paste_port *port) {
    struct paste_ring *ring = paste_ring_of(port);
    struct paste_buf buf;
    int32_t got = paste_alloc(port, &buf);
    for (int i = 0; i < 1000 && got == PASTE_EBUSY; i++) {
        ring->head = ring->tail;
        paste_poll(port, 10);
        got = paste_alloc(port, &buf);
    }
    EXPECT(got, PASTE_OK, "");
    memset(buf.p + buf.off, 'x', 100);
    buf.len = 100;
    return buf;
}

/* Waits until the ticket, which was just drawn, is reached, and hears of no other. */
static void wait_for_ticket(struct paste_port *port, uint64_t ticket) {
    struct paste_ring *ring = paste_ring_of(port);
    int told = !by_host;
    EXPECT(paste_is_durable(port, ticket), told, "");
    for (int i = 0; i < 1000 && !told; i++) {
        EXPECT(paste_poll(port, 10) >= 0, 1, "");
        for (; ring->head != ring->tail; ring->head = paste_ring_next(ring, ring->head)) {
            const struct paste_slot *slot = &ring->slot[ring->head];
            if (slot->kind != PASTE_FLUSHED)
                continue;
            EXPECT(slot->cookie == ticket && slot->reason == 0, 1, "");
            told = 1;
        }
    }
    EXPECT(told, 1, "");
    EXPECT(paste_is_durable(port, ticket), 1, "");
}

/* Polls until the log has no more records and buffers than these. */
static void wait_for_log(struct paste_port *port, uint64_t records, uint32_t buffers) {
    struct paste_ring *ring = paste_ring_of(port);
    struct paste_log_usage usage;
    for (int i = 0; i < 1000; i++) {
        EXPECT(paste_log_usage_of(port, &usage), PASTE_OK, "");
        if (usage.records <= records && usage.buffers <= buffers)
            break;
        ring->head = ring->tail;
        EXPECT(paste_poll(port, 10) >= 0, 1, "");
    }
    EXPECT(usage.records == records && usage.buffers == buffers, 1, "");
}

static unsigned visited;

/* Uses the port while its log is being handed out, and opens the log once more. */
static void visit(void *arg, const struct paste_record *record) {
    struct paste_port *port = arg;
    struct paste_buf buf;
    visited++;
    EXPECT(record->num_damaged == 0 && record->kind == 7, 1, "");
    EXPECT(paste_log_open(port, visit, port, NULL), PASTE_EINVAL, "open already");
    for (uint32_t i = 0; i < record->num_pieces; i++) {
        EXPECT(paste_stored(port, record->piece[i].index, &buf), PASTE_OK, "");
        EXPECT(buf.p == record->piece[i].p, 1, "");
    }
    EXPECT(paste_log_give_up(port, record->id), PASTE_OK, "");
}

/* Flushes, stored buffers, and the log. Leaves a record in it. */
static void durable(struct paste_port *port) {
    struct paste_ring *ring = paste_ring_of(port);
    struct paste_buf buf = take(port), other = take(port), pieces[2], wrong;
    struct paste_record record;
    struct paste_found found;
    struct paste_log_usage usage;
    uint64_t ticket = 0, id = 0;
    uint32_t index = 0;

    EXPECT(paste_flush(NULL, NULL, 0, NULL), PASTE_EINVAL, "port is NULL");
    EXPECT(paste_flush(port, NULL, 1, NULL), PASTE_EINVAL, "range is NULL");
    wrong = buf;
    wrong.len = 0;
    EXPECT(paste_flush(port, &wrong, 1, NULL), PASTE_EINVAL, "is empty");
    wrong.off = UINT32_MAX;
    wrong.len = 2;
    EXPECT(paste_flush(port, &wrong, 1, NULL), PASTE_EINVAL, "do not lie in");
    wrong = buf;
    wrong.index = UINT32_MAX;
    EXPECT(paste_flush(port, &wrong, 1, NULL), PASTE_ESTALE, "buffer 4294967295");
    wrong = buf;
    wrong.epoch++;
    EXPECT(paste_flush(port, &wrong, 1, NULL), PASTE_ESTALE, "no longer");
    EXPECT(paste_flush(port, &buf, 1, &ticket), PASTE_OK, "");
    wait_for_ticket(port, ticket);
    EXPECT(paste_is_durable(port, UINT64_MAX), 0, "");
    EXPECT(paste_is_durable(NULL, ticket), PASTE_EINVAL, "port is NULL");

    EXPECT(paste_stored(port, buf.index, NULL), PASTE_EINVAL, "buf is NULL");
    EXPECT(paste_stored(port, buf.index, &wrong), PASTE_ENOTSTORED, "not stored");
    EXPECT(paste_stored(port, UINT32_MAX, &wrong), PASTE_ENOTSTORED, "not stored");
    EXPECT(paste_send_stored(port, 7, UINT32_MAX, 128, 1, 0, 0), PASTE_ENOTSTORED, "");
    EXPECT(paste_unstore(port, buf.index), PASTE_ENOTSTORED, "not stored");
    EXPECT(paste_unstore(port, UINT32_MAX), PASTE_ENOTSTORED, "not stored");
    EXPECT(paste_store(port, NULL, &index), PASTE_EINVAL, "buf is NULL");
    wrong = buf;
    wrong.epoch++;
    EXPECT(paste_store(port, &wrong, &index), PASTE_ESTALE, "no longer");
    wrong = buf;
    EXPECT(paste_store(port, &buf, &index), PASTE_OK, "");
    EXPECT(buf.p == NULL && index == wrong.index, 1, "");
    EXPECT(paste_store(port, &wrong, &index), PASTE_ESTALE, "no longer");
    EXPECT(paste_send(port, 7, &wrong, 0, 0), PASTE_ESTALE, "no longer");
    EXPECT(paste_release(port, &wrong), PASTE_ESTALE, "no longer");
    EXPECT(paste_stored(port, index, &buf), PASTE_OK, "");
    EXPECT(buf.p == wrong.p && buf.len == buf.size && buf.p[wrong.off] == 'x', 1, "");
    uint32_t off = wrong.off, len = 100;
    EXPECT(paste_send_stored(port, 7, index, off, len, 0, PASTE_SEND_KEEP), PASTE_EINVAL, "flags");
    EXPECT(paste_send_stored(port, 7, index, off, UINT32_MAX, 0, 0), PASTE_EINVAL, "do not lie");
    EXPECT(paste_send_stored(port, 7, index, off, buf.size, 0, 0), PASTE_EINVAL, "do not lie");
    EXPECT(paste_send_stored(port, 7, index, 0, 1, 0, 0), PASTE_EINVAL, "headroom");
    EXPECT(paste_send_stored(port, 7, index, off, 0, 0, 0), PASTE_EINVAL, "empty");

    /* Not before it is opened, and once. */
    memset(&record, 0, sizeof record);
    EXPECT(paste_log_append(port, &record, &id), PASTE_EINVAL, "no log is open");
    EXPECT(paste_log_commit(port, &ticket), PASTE_EINVAL, "no log is open");
    EXPECT(paste_log_give_up(port, 1), PASTE_EINVAL, "no log is open");
    EXPECT(paste_log_usage_of(port, &usage), PASTE_EINVAL, "no log is open");
    EXPECT(paste_log_open(NULL, NULL, NULL, NULL), PASTE_EINVAL, "port is NULL");
    EXPECT(paste_log_open(port, NULL, NULL, &found), PASTE_OK, "");
    EXPECT(found.created == 1 && found.records == 0, 1, "");
    EXPECT(paste_log_open(port, NULL, NULL, &found), PASTE_EINVAL, "open already");
    EXPECT(paste_log_usage_of(port, NULL), PASTE_EINVAL, "usage is NULL");

    EXPECT(paste_log_append(port, NULL, &id), PASTE_EINVAL, "record is NULL");
    record.kind = 7;
    record.tag_len = 1;
    EXPECT(paste_log_append(port, &record, &id), PASTE_EINVAL, "record->tag is NULL");
    record.tag = (const uint8_t *)&record;
    record.tag_len = (16 << 10) + 1;
    EXPECT(paste_log_append(port, &record, &id), PASTE_EINVAL, "at most 16384");
    record.tag_len = 4;
    record.tag = (const uint8_t *)"tag";
    record.num_pieces = 2;
    EXPECT(paste_log_append(port, &record, &id), PASTE_EINVAL, "record->piece is NULL");
    record.piece = (const struct paste_buf *)((const char *)pieces + 1);
    EXPECT(paste_log_append(port, &record, &id), PASTE_EINVAL, "not aligned");
    record.piece = pieces;
    record.num_pieces = 1025;
    EXPECT(paste_log_append(port, &record, &id), PASTE_EINVAL, "at most 1024");
    record.num_pieces = 2;
    /* One that is ours, and another that is not: then neither is taken. */
    pieces[0] = other;
    pieces[1] = other;
    pieces[1].index = UINT32_MAX;
    EXPECT(paste_log_append(port, &record, &id), PASTE_ESTALE, "buffer 4294967295");
    pieces[1].index = other.index == 0 ? 1 : other.index - 1;
    if (pieces[1].index == index)
        pieces[1].index = other.index + 1;
    EXPECT(paste_log_append(port, &record, &id), PASTE_ESTALE, "no longer");
    pieces[1] = other;
    pieces[1].p = NULL;
    EXPECT(paste_log_append(port, &record, &id), PASTE_ESTALE, "no longer");
    pieces[1] = other;
    pieces[1].len = pieces[1].size;
    EXPECT(paste_log_append(port, &record, &id), PASTE_EINVAL, "do not lie in");
    pieces[1].len = 0;
    EXPECT(paste_log_append(port, &record, &id), PASTE_EINVAL, "is empty");
    pieces[1] = buf;
    record.kind = 65535;
    EXPECT(paste_log_append(port, &record, &id), PASTE_EINVAL, "kind 65535");
    EXPECT(paste_keep(port, &other), PASTE_OK, "");
    record.kind = 7;
    wait_for_log(port, 0, 0);

    /* A stored one and one that was not; then one of them again. */
    pieces[1].off = off;
    pieces[1].len = 100;
    EXPECT(paste_log_append(port, &record, &id), PASTE_OK, "");
    EXPECT(paste_release(port, &other), PASTE_ESTALE, "no longer");
    EXPECT(paste_unstore(port, index), PASTE_EBUSY, "the log's");
    EXPECT(paste_log_append(port, &record, NULL), PASTE_OK, "");
    wait_for_log(port, 2, 2);
    EXPECT(paste_log_give_up(port, id + 2), PASTE_EINVAL, "no record");
    EXPECT(paste_log_give_up(port, UINT64_MAX), PASTE_EINVAL, "no record");
    EXPECT(paste_log_give_up(port, 0), PASTE_OK, "");
    EXPECT(paste_log_commit(port, &ticket), PASTE_OK, "");
    wait_for_ticket(port, ticket);
    EXPECT(paste_send_stored(port, 7, other.index, other.off, 100, 43, PASTE_SEND_DURABLE),
           PASTE_OK, "");
    int refused = 0;
    for (int i = 0; i < 1000 && !refused; i++) {
        EXPECT(paste_poll(port, 10) >= 0, 1, "");
        for (; ring->head != ring->tail; ring->head = paste_ring_next(ring, ring->head)) {
            const struct paste_slot *slot = &ring->slot[ring->head];
            refused |= slot->kind == PASTE_REFUSED && slot->cookie == 43 && slot->buf.p == NULL;
        }
    }
    EXPECT(refused, 1, "");
    EXPECT(paste_log_give_up(port, id), PASTE_OK, "");
    /* The second one names both as well. */
    wait_for_log(port, 1, 2);
    EXPECT(paste_log_usage_of(port, &usage), PASTE_OK, "");
    EXPECT(usage.bytes_free < usage.bytes && usage.region_buffers > 2, 1, "");
}

int main(int argc, char **argv) {
    struct paste_port *port = (struct paste_port *)&failures;
    struct paste_options options;
    struct paste_buf buf, copy;
    uint64_t cookie = 0;

    if (argc != 4 && argc != 5)
        return 2;
    by_host = argc == 5;
    memset(&options, 0, sizeof options);

    EXPECT(paste_open(NULL, NULL, &port), PASTE_EINVAL, "socket is NULL");
    EXPECT(port == NULL, 1, "");
    EXPECT(paste_open(argv[1], NULL, NULL), PASTE_EINVAL, "port is NULL");
    EXPECT(paste_open("/nowhere/at/all.sock", NULL, &port), PASTE_ELOST, "backend");
    EXPECT(paste_open("/nowhere/\xff.sock", NULL, &port), PASTE_EINVAL, "UTF-8");
    options.ring_slots = 1;
    EXPECT(paste_open(argv[1], &options, &port), PASTE_EINVAL, "ring_slots is 1");
    options.ring_slots = 0;
    options.channel = 16;
    EXPECT(paste_open(argv[1], &options, &port), PASTE_EINVAL, "channel 16");
    EXPECT(paste_open_device("no such device", "/dev/null", NULL, &port), PASTE_ELOST, "");
    EXPECT(paste_open_pci(NULL, NULL, NULL, &port), PASTE_EINVAL, "address is NULL");
    EXPECT(paste_open_pci("eth0", NULL, NULL, &port), PASTE_EINVAL, "no address of a PCI device");
    EXPECT(paste_open_pci("../x", "pci", NULL, &port), PASTE_EINVAL, "no address of a PCI device");
    EXPECT(paste_open_pci("ffff:ff:1f.7", NULL, NULL, &port), PASTE_EINVAL, "there is none");
    EXPECT(port == NULL, 1, "");
    EXPECT(paste_poll(NULL, 0), PASTE_EINVAL, "port is NULL");
    EXPECT(paste_close(NULL), PASTE_OK, "");
    EXPECT(paste_ring_of(NULL) == NULL, 1, "");

    options.channel = 0;
    options.ring_slots = 4;
    EXPECT(paste_open(argv[1], &options, &port), PASTE_OK, "");
    if (port == NULL)
        return 1;
    struct paste_ring *ring = paste_ring_of(port);
    EXPECT(ring->num_slots == 4 && ring->head == ring->tail, 1, "");

    ring->head = 3;
    EXPECT(paste_poll(port, 0), PASTE_EINVAL, "head is 3");
    ring->head = UINT32_MAX;
    EXPECT(paste_poll(port, 0), PASTE_EINVAL, "head is");
    ring->head = ring->tail;
    EXPECT(paste_poll(port, 0) >= 0, 1, "");

    EXPECT(paste_alloc(port, NULL), PASTE_EINVAL, "buf is NULL");
    int32_t got = PASTE_EBUSY;
    for (int i = 0; i < 1000 && got == PASTE_EBUSY; i++) {
        ring->head = ring->tail;
        paste_poll(port, 10);
        got = paste_alloc(port, &buf);
    }
    EXPECT(got, PASTE_OK, "");
    copy = buf;

    EXPECT(paste_send(port, 7, NULL, 0, 0), PASTE_EINVAL, "buf is NULL");
    EXPECT(paste_send(port, 7, &buf, 0, 0x80), PASTE_EINVAL, "flags 0x80");
    EXPECT(paste_send(port, 7, &buf, 0, 0), PASTE_EINVAL, "empty");
    buf.len = buf.size;
    EXPECT(paste_send(port, 7, &buf, 0, 0), PASTE_EINVAL, "do not lie in");
    buf.off = UINT32_MAX;
    EXPECT(paste_send(port, 7, &buf, 0, 0), PASTE_EINVAL, "do not lie in");
    buf = copy;
    buf.index = UINT32_MAX;
    EXPECT(paste_release(port, &buf), PASTE_ESTALE, "buffer 4294967295");
    buf = copy;
    buf.epoch++;
    EXPECT(paste_keep(port, &buf), PASTE_ESTALE, "no longer");
    buf = copy;
    EXPECT(paste_keep(port, &buf), PASTE_OK, "");
    EXPECT(paste_release(port, &buf), PASTE_OK, "");
    EXPECT(buf.p == NULL, 1, "");
    EXPECT(paste_release(port, &buf), PASTE_ESTALE, "");
    EXPECT(paste_release(port, &copy), PASTE_ESTALE, "");

    EXPECT(paste_connect(port, NULL, 1, 0, &cookie), PASTE_EINVAL, "address is NULL");
    EXPECT(paste_connect(port, "nowhere", 1, 0, &cookie), PASTE_EINVAL, "no IP address");

    /* A flow that is none is refused by the host, which gives the buffer back. */
    EXPECT(paste_alloc(port, &buf), PASTE_OK, "");
    memset(buf.p + buf.off, 'x', 100);
    buf.len = 100;
    EXPECT(paste_send(port, 7, &buf, 42, 0), PASTE_OK, "");
    EXPECT(buf.p == NULL, 1, "");
    int refused = 0;
    for (int i = 0; i < 1000 && !refused; i++) {
        EXPECT(paste_poll(port, 10) >= 0, 1, "");
        while (ring->head != ring->tail) {
            struct paste_slot *slot = &ring->slot[ring->head];
            if (slot->kind == PASTE_REFUSED && slot->cookie == 42) {
                refused = 1;
                EXPECT(strcmp(paste_reason(slot->reason), "unknown") != 0, 1, "");
            }
            ring->head = paste_ring_next(ring, ring->head);
        }
    }
    EXPECT(refused, 1, "");
    EXPECT(strcmp(paste_reason(65535), "unknown"), 0, "");

    /* A connection to itself, in a ring of three slots: nothing is lost of it. */
    uint16_t tcp_port = (uint16_t)atoi(argv[3]);
    uint32_t listener = 0, client = 0, server = 0;
    EXPECT(paste_listen(port, tcp_port, 8, &listener), PASTE_OK, "");
    EXPECT(paste_listen(port, tcp_port, 8, NULL), PASTE_EREFUSED, "");
    EXPECT(paste_connect(port, argv[2], tcp_port, 0, &cookie), PASTE_OK, "");
    uint64_t sent = 0, received = 0, wanted = 200 * 1000;
    int connected = 0, finished = 0, under_way = 0;
    for (int i = 0; i < 2000 && !finished; i++) {
        EXPECT(paste_poll(port, 10) >= 0, 1, "");
        while (ring->head != ring->tail) {
            struct paste_slot *slot = &ring->slot[ring->head];
            if (slot->kind == PASTE_ACCEPTED) {
                server = slot->flow;
                EXPECT(slot->listener == listener && slot->local_port == tcp_port, 1, "");
                EXPECT(slot->peer_family == 4 && slot->peer[0] == 127, 1, "");
            }
            if (slot->kind == PASTE_CONNECTED && slot->cookie == cookie) {
                client = slot->flow;
                connected = 1;
            }
            if (slot->kind == PASTE_DATA && slot->flow == server) {
                for (uint32_t at = 0; at < slot->buf.len; at++)
                    if (slot->buf.p[slot->buf.off + at] != (uint8_t)((received + at) % 251))
                        failures++;
                received += slot->buf.len;
            }
            if (slot->kind == PASTE_ACKED && slot->cookie == 7)
                under_way--;
            EXPECT(slot->kind != PASTE_REFUSED && slot->kind != PASTE_LOST, 1, "");
            if (slot->kind == PASTE_FIN && slot->flow == server)
                finished = 1;
            ring->head = paste_ring_next(ring, ring->head);
        }
        /* No more than a flow takes at once. */
        while (connected && sent < wanted && under_way < 32 &&
               paste_alloc(port, &buf) == PASTE_OK) {
            for (uint32_t at = 0; at < 1000; at++)
                buf.p[buf.off + at] = (uint8_t)((sent + at) % 251);
            buf.len = 1000;
            EXPECT(paste_send(port, client, &buf, 7, PASTE_SEND_NOTIFY), PASTE_OK, "");
            sent += 1000;
            under_way++;
            if (sent == wanted)
                EXPECT(paste_finish(port, client), PASTE_OK, "");
        }
    }
    EXPECT(finished && received == wanted, 1, "");
    durable(port);
    printf("%llu bytes of %llu\n", (unsigned long long)received, (unsigned long long)wanted);

    EXPECT(paste_close(port), PASTE_OK, "");

    /* What was committed is there, is given up while it is handed out, and leaves nothing. */
    EXPECT(paste_open(argv[1], &options, &port), PASTE_OK, "");
    struct paste_found found;
    EXPECT(paste_log_open(port, visit, port, &found), PASTE_OK, "");
    EXPECT(visited == 1 && found.records == 1 && found.created == 0, 1, "");
    EXPECT(found.lost_records == 0 && found.damaged_pieces == 0, 1, "");
    wait_for_log(port, 0, 0);
    EXPECT(paste_close(port), PASTE_OK, "");

    /* A host that lets nobody store. */
    options.inline_slots = 1;
    EXPECT(paste_open(argv[1], &options, &port), PASTE_OK, "");
    buf = take(port);
    EXPECT(paste_store(port, &buf, NULL), PASTE_ENOTSUP, "stored");
    EXPECT(paste_send_stored(port, 7, buf.index, buf.off, 1, 0, 0), PASTE_ENOTSTORED, "");
    EXPECT(paste_log_open(port, NULL, NULL, NULL), PASTE_ENOTSUP, "stored");
    EXPECT(paste_release(port, &buf), PASTE_OK, "");
    EXPECT(paste_close(port), PASTE_OK, "");
    printf("%u failures\n", failures);
    return failures != 0;
}
