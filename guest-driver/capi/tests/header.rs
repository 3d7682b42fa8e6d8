//! `paste_guest.h` is what the sources say. After a change of these it is written anew by
//!
//! ```sh
//! PASTE_WRITE_HEADER=1 cargo test -p paste-guest-c --test header
//! ```

use std::path::{Path, PathBuf};

use cbindgen::{Builder, Config, DocumentationStyle, Language, Style};

const HEAD: &str = "\
/* The C interface of paste-guest: stack ports of pasted for applications in C.
 *
 * A program opens a stack port, polls it, and walks a ring of slots:
 *
 *     struct paste_port *port;
 *     if (paste_open(\"/run/pasted/web1.sock\", NULL, &port) != PASTE_OK)
 *         errx(1, \"%s\", paste_error());
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
 * Generated from guest-driver/capi: do not change it here. */";

const TAIL: &str = "\
/* The slot behind this one. */
static inline uint32_t paste_ring_next(const struct paste_ring *ring, uint32_t slot) {
  return slot + 1 == ring->num_slots ? 0 : slot + 1;
}";

fn generated() -> String {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let config = Config {
        language: Language::C,
        header: Some(HEAD.to_owned()),
        trailer: Some(TAIL.to_owned()),
        include_guard: Some("PASTE_GUEST_H".to_owned()),
        cpp_compat: true,
        no_includes: true,
        sys_includes: vec!["stdint.h".to_owned()],
        style: Style::Tag,
        documentation_style: DocumentationStyle::Doxy,
        line_length: 92,
        ..Config::default()
    };
    let mut builder = Builder::new().with_config(config);
    for source in ["error.rs", "types.rs", "ffi.rs", "ffi_durable.rs"] {
        builder = builder.with_src(sources.join(source));
    }
    let mut bytes = Vec::new();
    builder.generate().expect("the sources can be read").write(&mut bytes);
    without_safety(&String::from_utf8(bytes).expect("text"))
}

/// Comments without their sections on safety, which are for Rust.
fn without_safety(header: &str) -> String {
    let mut out = String::new();
    let mut skipping = false;
    for line in header.lines() {
        if line.trim() == "* # Safety" {
            // The empty line before it goes too.
            out.truncate(out.trim_end_matches([' ', '*', '\n']).len());
            out.push('\n');
            skipping = true;
        }
        if line.trim() == "*/" {
            skipping = false;
        }
        if !skipping {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[test]
fn the_header_is_what_the_sources_say() {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../include/paste_guest.h");
    let generated = generated();
    if std::env::var_os("PASTE_WRITE_HEADER").is_some() {
        std::fs::write(&path, &generated).expect("the header can be written");
    }
    let committed = std::fs::read_to_string(&path).expect("the header is there");
    assert!(
        committed == generated,
        "paste_guest.h is not what the sources say: PASTE_WRITE_HEADER=1 cargo test -p \
         paste-guest-c --test header"
    );
}
