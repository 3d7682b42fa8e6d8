/* The C interface of paste-guest: stack ports of pasted for applications in C.
 *
 * A program opens a stack port, polls it, and walks a ring of slots:
 *
 *     struct paste_port *port;
 *     if (paste_open("/run/pasted/web1.sock", NULL, &port) != PASTE_OK)
 *         errx(1, "%s", paste_error());
 *     paste_listen(port, 80, 128, NULL);
 *     struct paste_ring *ring = paste_ring_of(port);
 *     while (paste_poll(port, -1) >= 0) {
 *         uint32_t cur = ring->head;
 *         while (cur != ring->tail) {
 *             struct paste_slot *slot = &ring->slot[cur];
 *             if (slot->kind == PASTE_DATA)
 *                 process(slot->flow, slot->buf.p + slot->buf.off, slot->buf.len);
 *             cur = paste_ring_next(ring, cur);
 *         }
 *         ring->head = cur;
 *     }
 *
 * A request that must survive is appended to the log where it lies, and answered with
 * PASTE_SEND_DURABLE, which the host holds back until that is durable:
 *
 *     struct paste_record record = {.piece = &slot->buf, .num_pieces = 1};
 *     paste_log_append(port, &record, NULL);
 *     paste_send(port, slot->flow, &answer, 0, PASTE_SEND_DURABLE);
 *
 * paste_log_open, at the start, hands out what was appended before. log.c in
 * guest-driver/examples/c is a server that does so.
 *
 * Functions return PASTE_OK or a count, or a negative PASTE_E...; paste_error then says
 * what was wrong. Link with -lpasteguest; with the static library also -lpthread -ldl -lm.
 * A port belongs to one thread at a time; different ports to any.
 *
 * Generated from guest-driver/capi: do not change it here. */

#ifndef PASTE_GUEST_H
#define PASTE_GUEST_H

#include <stdint.h>

/**
 * Done.
 */
#define PASTE_OK 0

/**
 * An argument is wrong.
 */
#define PASTE_EINVAL -1

/**
 * Not now: poll, and try again.
 */
#define PASTE_EBUSY -2

/**
 * The buffer is not, or no longer, the application's.
 */
#define PASTE_ESTALE -3

/**
 * The host refused.
 */
#define PASTE_EREFUSED -4

/**
 * The host cannot be reached, or the channel was lost.
 */
#define PASTE_ELOST -5

/**
 * The host did not answer in time.
 */
#define PASTE_ETIMEDOUT -6

/**
 * This system cannot do it.
 */
#define PASTE_ENOTSUP -7

/**
 * A fault of the library's own. The port can only be closed.
 */
#define PASTE_EFAULT -8

/**
 * The buffer is not stored.
 */
#define PASTE_ENOTSTORED -9

/**
 * The log is full: give up records, and poll.
 */
#define PASTE_EFULL -10

/**
 * There is a log in the region, and it cannot be read.
 */
#define PASTE_EDAMAGED -11

/**
 * The channel was opened anew after PASTE_LOST: open the log again, then listen again.
 */
#define PASTE_OPENED 1

/**
 * The channel is gone, and with it every flow, listener and buffer. The log is closed: what
 * it records is in the region. `reason` is the host's, or 0. The channel is opened anew by
 * the polls that follow. Pointers into buffers are good until `head` passes this slot.
 */
#define PASTE_LOST 2

/**
 * `listener` has a new flow from `peer`.
 */
#define PASTE_ACCEPTED 3

/**
 * The flow that paste_connect was asked for, with its cookie, is open.
 */
#define PASTE_CONNECTED 4

/**
 * `buf` holds in-order payload of the flow.
 */
#define PASTE_DATA 5

/**
 * The peer sends no more. The flow can still be sent on.
 */
#define PASTE_FIN 6

/**
 * The flow is gone, for `reason`.
 */
#define PASTE_RESET 7

/**
 * Both sides have closed and everything is acknowledged.
 */
#define PASTE_CLOSED 8

/**
 * The peer has acknowledged what was sent with PASTE_SEND_NOTIFY and this cookie; with
 * PASTE_SEND_KEEP, `buf` is its buffer. So end sends of stored buffers too, also when their
 * flow is gone.
 */
#define PASTE_ACKED 9

/**
 * The flow takes data again after PASTE_REFUSED.
 */
#define PASTE_WRITABLE 10

/**
 * The outcome of paste_connect, paste_request_listen or paste_unlisten with this cookie:
 * `reason` is 0, or why not. A connection is complete only with PASTE_CONNECTED.
 */
#define PASTE_REPLY 11

/**
 * The host refused a request about the flow, for `reason`. `buf` is the buffer that was
 * to be sent, if there is one.
 */
#define PASTE_REFUSED 12

/**
 * The host has answered what ended with the ticket in `cookie`: all that was flushed or
 * committed before it is durable, if `reason` is 0; else `reason` says why not, and it is
 * tried again with the next paste_flush or paste_log_commit. Nothing is told of tickets
 * of before PASTE_LOST.
 */
#define PASTE_FLUSHED 13

/**
 * Say with PASTE_ACKED when the peer has acknowledged it.
 */
#define PASTE_SEND_NOTIFY 1

/**
 * Give the buffer back with PASTE_ACKED, and not to the pool.
 */
#define PASTE_SEND_KEEP 2

/**
 * Send it when everything that was flushed or appended to the log before is durable;
 * PASTE_REFUSED says so if that cannot be. What is sent on the flow later goes behind it.
 * It commits what was appended and not committed: of several records, commit them
 * together with paste_log_commit before the first such send.
 */
#define PASTE_SEND_DURABLE 4

/**
 * A stack port. It belongs to one thread at a time.
 */
struct paste_port;

/**
 * How a port is opened. All zeros, or no such structure, is what most want.
 */
struct paste_options {
  /**
   * The application's name for the host's logs, of up to 32 bytes; NULL for none.
   */
  const char *name;
  /**
   * Slots of the ring, from 2 to 65536; 0 for 1024.
   */
  uint32_t ring_slots;
  /**
   * Empty buffers to keep for paste_alloc; 0 for 256.
   */
  uint32_t reserve;
  /**
   * Microseconds to look for slots before a poll sleeps.
   */
  uint32_t poll_us;
  /**
   * The channel's number on this device, below 16.
   */
  uint16_t channel;
  /**
   * Unless 0, payload travels in the frames, which are copied, and the region need not
   * be there.
   */
  uint16_t inline_slots;
};

/**
 * A buffer of the region that belongs to the application, and the range of it that
 * matters. Nothing of it but `off` and `len` is to be changed.
 */
struct paste_buf {
  /**
   * Where it starts; NULL: there is no buffer here. The range is at `p + off`.
   */
  uint8_t *p;
  /**
   * Where the range starts, in bytes from `p`.
   */
  uint32_t off;
  /**
   * Bytes of the range.
   */
  uint32_t len;
  /**
   * Bytes of all of it.
   */
  uint32_t size;
  /**
   * Its index in the region.
   */
  uint32_t index;
  /**
   * Which opening of the channel it is of.
   */
  uint32_t epoch;
};

/**
 * One thing that happened. Those of a flow come in order.
 */
struct paste_slot {
  /**
   * What: PASTE_DATA or another.
   */
  uint32_t kind;
  /**
   * The flow that it is about; it is dead after PASTE_RESET and PASTE_CLOSED. 0 is a
   * name as any other.
   */
  uint32_t flow;
  /**
   * The word given with what this is about.
   */
  uint64_t cookie;
  /**
   * When the payload arrived, in ns since the Unix epoch.
   */
  uint64_t time_ns;
  /**
   * The buffer, if there is one.
   */
  struct paste_buf buf;
  /**
   * With PASTE_ACCEPTED, who took the flow.
   */
  uint32_t listener;
  /**
   * Why: 0, or a number that paste_reason has words for.
   */
  uint16_t reason;
  /**
   * With PASTE_ACCEPTED, the port that it came to.
   */
  uint16_t local_port;
  /**
   * With PASTE_ACCEPTED, the peer's port.
   */
  uint16_t peer_port;
  /**
   * With PASTE_ACCEPTED, 4 or 6.
   */
  uint16_t peer_family;
  /**
   * With PASTE_ACCEPTED, the peer's address, in network byte order; of IPv4 the first
   * four bytes.
   */
  uint8_t peer[16];
};

/**
 * The slots of a port. Those from `head` up to, but without, `tail` are the
 * application's.
 */
struct paste_ring {
  /**
   * All slots.
   */
  struct paste_slot *slot;
  /**
   * How many there are.
   */
  uint32_t num_slots;
  /**
   * The first slot that the application wants to see again. It is the application's to
   * move, up to `tail`: the next poll gives back the buffers of what it has passed,
   * unless they were sent or kept.
   */
  uint32_t head;
  /**
   * Where the slots end.
   */
  uint32_t tail;
};

/**
 * A record of the log: what is to be appended, or what was found.
 */
struct paste_record {
  /**
   * Its number, which is greater than that of those before; not read by
   * paste_log_append.
   */
  uint64_t id;
  /**
   * When its request arrived, in ns since the Unix epoch, or what else is to be kept.
   */
  uint64_t time_ns;
  /**
   * Bytes of the application's, which are copied into the record.
   */
  const uint8_t *tag;
  /**
   * The ranges of buffers that it names, in order. Of a record that was found, `p` of
   * each that is damaged is NULL: its bytes are not what was recorded.
   */
  const struct paste_buf *piece;
  /**
   * Bytes of the tag, up to 16384.
   */
  uint32_t tag_len;
  /**
   * How many ranges there are, up to 1024.
   */
  uint32_t num_pieces;
  /**
   * How many of them are damaged; not read by paste_log_append.
   */
  uint32_t num_damaged;
  /**
   * A word of the application's, below 65535.
   */
  uint16_t kind;
};

/**
 * What paste_log_open has found.
 */
struct paste_found {
  /**
   * Records that hold.
   */
  uint64_t records;
  /**
   * Records that nobody was promised, as no commit of them was durable, and whose
   * bytes were not all there: they are left out.
   */
  uint64_t dropped;
  /**
   * Records that were durable and cannot be read.
   */
  uint64_t lost_records;
  /**
   * Ranges that were durable and are damaged: see paste_record.
   */
  uint64_t damaged_pieces;
  /**
   * 1: there was no log, and an empty one was made.
   */
  uint32_t created;
  /**
   * 1: records that were being written when it ended were cut off.
   */
  uint32_t torn;
};

/**
 * How much the log has.
 */
struct paste_log_usage {
  /**
   * Records that are there: those that were given up count until that is durable.
   */
  uint64_t records;
  /**
   * Bytes for records.
   */
  uint64_t bytes;
  /**
   * Those of them that are free.
   */
  uint64_t bytes_free;
  /**
   * Buffers that are the log's: named by records, or not given back yet.
   */
  uint32_t buffers;
  /**
   * Buffers of the region. A log that takes most of them leaves none for requests.
   */
  uint32_t region_buffers;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Opens a stack port of the backend that listens at `socket`, a Unix socket: this
 * process is the guest. Waits until it is open. `options` may be NULL. Writes the port
 * to `*port`, or NULL on a failure.
 */
int32_t paste_open(const char *socket,
                   const struct paste_options *options,
                   struct paste_port **port);

/**
 * As paste_open, inside a virtual machine: by its network device `interface`, with the
 * region that its kernel shows at `region`, such as "/dev/dax0.0"; or "pci", for the PCI
 * device that has it, an ivshmem or paste-region device, or "pci:0000:00:06.0", for the
 * one at this address. Without one, NULL, payload travels in the frames.
 */
int32_t paste_open_device(const char *interface,
                          const char *region,
                          const struct paste_options *options,
                          struct paste_port **port);

/**
 * As paste_open_device, by a virtio-net device that the machine's kernel has given away:
 * this process drives it, and alone. `address` is where it is on the PCI bus, such as
 * "0000:00:05.0". It is bound to uio_pci_generic; one huge page of 2 MiB is free; and it
 * takes root. PASTE_EINVAL if there is no such device, or one that cannot be driven so.
 */
int32_t paste_open_pci(const char *address,
                       const char *region,
                       const struct paste_options *options,
                       struct paste_port **port);

/**
 * Ends the conversation in good order and frees the port, whatever it returns. The ring
 * and all buffers are gone. NULL is nothing to close.
 */
int32_t paste_close(struct paste_port *port);

/**
 * The ring of the port, which stays where it is until the port is closed. NULL for NULL.
 */
struct paste_ring *paste_ring_of(struct paste_port *port);

/**
 * Gives back the buffers of all slots that `head` has passed, sends what was queued, takes
 * what has arrived, and puts it into the ring. If the ring was empty and nothing has
 * arrived, waits for up to `timeout_ms` milliseconds; -1: for ever; a signal ends the wait.
 * Returns how many slots are in the ring, which can be none.
 */
int32_t paste_poll(struct paste_port *port, int32_t timeout_ms);

/**
 * Accepts flows on a TCP port and waits for the host's answer. `backlog` flows may be on
 * their way to being established. Writes the listener's name to `*listener`, unless that
 * is NULL.
 */
int32_t paste_listen(struct paste_port *port,
                     uint16_t tcp_port,
                     uint16_t backlog,
                     uint32_t *listener);

/**
 * As paste_listen, without waiting: PASTE_REPLY with the cookie that is written to
 * `*cookie`, unless that is NULL, names the listener or says why there is none. For a
 * server that listens again after PASTE_OPENED.
 */
int32_t paste_request_listen(struct paste_port *port,
                             uint16_t tcp_port,
                             uint16_t backlog,
                             uint64_t *cookie);

/**
 * Stops accepting. PASTE_REPLY with the cookie that is written to `*cookie`, unless that
 * is NULL, says when that is done.
 */
int32_t paste_unlisten(struct paste_port *port, uint32_t listener, uint64_t *cookie);

/**
 * Asks for a connection to `address`, IPv4 or IPv6 in text, from `local_port` or any (0).
 * PASTE_REPLY with the cookie that is written to `*cookie`, unless that is NULL, names the
 * flow, and PASTE_CONNECTED follows.
 */
int32_t paste_connect(struct paste_port *port,
                      const char *address,
                      uint16_t tcp_port,
                      uint16_t local_port,
                      uint64_t *cookie);

/**
 * Sends the range of `buf` on `flow`. On success the buffer is the host's and `buf` holds
 * none; otherwise nothing has changed. `flags` are of PASTE_SEND_NOTIFY,
 * PASTE_SEND_KEEP and PASTE_SEND_DURABLE; `cookie` comes back with PASTE_ACKED and
 * PASTE_REFUSED. It goes with the next poll.
 */
int32_t paste_send(struct paste_port *port,
                   uint32_t flow,
                   struct paste_buf *buf,
                   uint64_t cookie,
                   uint32_t flags);

/**
 * Writes an empty buffer to fill to `*buf`, its `off` at the first byte that may be sent.
 * PASTE_EBUSY when none is left: the next polls bring more.
 */
int32_t paste_alloc(struct paste_port *port, struct paste_buf *buf);

/**
 * Keeps the buffer of a slot when `head` passes it. It has to be sent or released later,
 * by a copy of `*buf`.
 */
int32_t paste_keep(struct paste_port *port, struct paste_buf *buf);

/**
 * Gives a buffer back. `buf` then holds none.
 */
int32_t paste_release(struct paste_port *port, struct paste_buf *buf);

/**
 * Sends no more on `flow`: FIN follows what was sent so far.
 */
int32_t paste_finish(struct paste_port *port, uint32_t flow);

/**
 * Resets `flow`.
 */
int32_t paste_abort(struct paste_port *port, uint32_t flow);

/**
 * What was said of the calling thread's last failure: one line, never NULL, good until
 * that thread's next one.
 */
const char *paste_error(void);

/**
 * Words for a `reason`; never NULL, and good for ever.
 */
const char *paste_reason(uint16_t reason);

/**
 * Asks for the ranges of `num_ranges` buffers, the application's or stored ones, to be
 * made durable, with everything that was appended to the log before. PASTE_FLUSHED with the
 * ticket that is written to `*ticket`, unless that is NULL, tells when they are, or why not;
 * where the host has nothing to do for that, nothing is told, and paste_is_durable says so
 * at once. What it survives is the region's matter: with a mirror or in persistent memory
 * a loss of power, and otherwise the end of this program and of the backend.
 */
int32_t paste_flush(struct paste_port *port,
                    const struct paste_buf *range,
                    uint32_t num_ranges,
                    uint64_t *ticket);

/**
 * 1 if everything that ended with the ticket is durable, otherwise 0.
 */
int32_t paste_is_durable(struct paste_port *port, uint64_t ticket);

/**
 * Stores a buffer: it leaves the application's hands, as with paste_send, and stays as it
 * is, to be read, and sent any number of times, by its index, which is written to `*index`,
 * unless that is NULL. On success `buf` holds none. A stored buffer is missing from the pool
 * until paste_unstore; with PASTE_LOST all are given back but those of the log, so what is
 * to survive that has to be appended. PASTE_ENOTSUP: the host lets nobody store.
 */
int32_t paste_store(struct paste_port *port,
                    struct paste_buf *buf,
                    uint32_t *index);

/**
 * Writes a stored buffer, the application's or the log's, to `*buf`, its range all of it.
 * It is to be read only; it, with a range, can be given to paste_flush and in a record to
 * paste_log_append.
 */
int32_t paste_stored(struct paste_port *port, uint32_t index, struct paste_buf *buf);

/**
 * Sends `len` bytes at `off` of a stored buffer, the application's or the log's, on `flow`,
 * from where they are. It may be on its way any number of times. PASTE_ACKED or
 * PASTE_REFUSED with the cookie, and no buffer, ends each. `flags` are of PASTE_SEND_NOTIFY,
 * which goes without saying, and PASTE_SEND_DURABLE.
 */
int32_t paste_send_stored(struct paste_port *port,
                          uint32_t flow,
                          uint32_t index,
                          uint32_t off,
                          uint32_t len,
                          uint64_t cookie,
                          uint32_t flags);

/**
 * Gives a stored buffer back, once the last of its sends has ended. PASTE_EBUSY: it is the
 * log's, which gives it back itself.
 */
int32_t paste_unstore(struct paste_port *port, uint32_t index);

/**
 * Opens the log of the port's region, which a crash of this program, of the backend or of
 * the machine leaves whole, or makes one. Waits for the host, for up to 20 seconds. Then
 * `visit`, unless it is NULL, is called with `arg` for each record that holds, oldest first;
 * what it is given is good during that call, `p` of each range as long as the record is
 * there. It may use the port, but not close it. What was found and what was lost is written
 * to `*found`, unless that is NULL, before.
 *
 * There is one log per region, and one program may have it open. PASTE_LOST closes it:
 * after PASTE_OPENED open it again, before listening. Records, their numbers and the
 * indices of their buffers are then as they are here, so that the application begins anew
 * with what `visit` is given. PASTE_ENOTSUP: the host lets nobody store, or the region has
 * no log. PASTE_EDAMAGED: there is one and it cannot be read. PASTE_EREFUSED: the host keeps
 * back buffers of it.
 */
int32_t paste_log_open(struct paste_port *port,
                       void (*visit)(void *arg, const struct paste_record *record),
                       void *arg,
                       struct paste_found *found);

/**
 * Appends a record and writes its number to `*id`, unless that is NULL. Its ranges lie in
 * buffers of the application's or in stored ones; whatever they were, they are then stored,
 * and the log's, until the last record that names them is given up. So nothing is to be
 * written to them any more, and to answer takes another buffer; they can still be read, and
 * sent with paste_send_stored; and other ranges of them can be named in other records. On a
 * failure nothing has changed. Durable with the next paste_log_commit, paste_flush or send
 * with PASTE_SEND_DURABLE. PASTE_EFULL: give up records.
 */
int32_t paste_log_append(struct paste_port *port,
                         const struct paste_record *record,
                         uint64_t *id);

/**
 * Ends the epoch: everything that was appended is durable when the ticket that is written to
 * `*ticket`, unless that is NULL, is reached, as with paste_flush.
 */
int32_t paste_log_commit(struct paste_port *port,
                         uint64_t *ticket);

/**
 * Gives up the record with this number and all before it; what replaces them was appended
 * before. That is made durable, and their room is free and their buffers given back, by the
 * polls that follow. Until then a crash may leave them in the log.
 */
int32_t paste_log_give_up(struct paste_port *port, uint64_t id);

/**
 * Writes how much the log has to `*usage`: what tells when to give up records.
 */
int32_t paste_log_usage_of(struct paste_port *port, struct paste_log_usage *usage);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PASTE_GUEST_H */

/* The slot behind this one. */
static inline uint32_t paste_ring_next(const struct paste_ring *ring, uint32_t slot) {
  return slot + 1 == ring->num_slots ? 0 : slot + 1;
}
