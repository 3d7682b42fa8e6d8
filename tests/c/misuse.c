/*
 * Uses paste_guest.h as it is not meant: every call has to answer with a code and a
 * message, and the port goes on. Arguments: the backend's socket, and a TCP port at its
 * address for a connection to itself.
 */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "paste_guest.h"

static unsigned failures;

/* A call that has to return this, with these words in the message. */
static void expect(int line, int32_t got, int32_t want, const char *words) {
    if (got == want && (want >= 0 || strstr(paste_error(), words) != NULL))
        return;
    failures++;
    fprintf(stderr, "misuse.c:%d: %d and not %d: %s\n", line, got, want, paste_error());
}
#define EXPECT(call, want, words) expect(__LINE__, (call), (want), (words))

int main(int argc, char **argv) {
    struct paste_port *port = (struct paste_port *)&failures;
    struct paste_options options;
    struct paste_buf buf, copy;
    uint64_t cookie = 0;

    if (argc != 4)
        return 2;
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
    printf("%llu bytes of %llu\n", (unsigned long long)received, (unsigned long long)wanted);

    EXPECT(paste_close(port), PASTE_OK, "");
    printf("%u failures\n", failures);
    return failures != 0;
}
