//! Options of any bytes, in a SYN and in its IP header. What the stack makes of
//! them shows in its answer, and must be what a plain reading says.

use super::bed::{Bed, MS, PORT};
use super::bytes::Bytes;
use super::frames::{self, Said, flag};

/// What a SYN's options ask for, read in the plainest way. RFC 9293 section 3.1:
/// an option that does not fit ends them, and what came before counts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    mss: Option<u16>,
    scale: bool,
    sack: bool,
    timestamps: Option<u32>,
}

fn plain(options: &[u8]) -> Asked {
    let mut asked = Asked::default();
    let mut at = 0;
    while at < options.len() {
        let kind = options[at];
        if kind == 0 {
            break;
        }
        if kind == 1 {
            at += 1;
            continue;
        }
        let Some(&len) = options.get(at + 1) else { break };
        let len = usize::from(len);
        if len < 2 || at + len > options.len() {
            break;
        }
        let value = &options[at + 2..at + len];
        match (kind, value) {
            (2, &[a, b]) => asked.mss = Some(u16::from_be_bytes([a, b])),
            (3, [_]) => asked.scale = true,
            (4, []) => asked.sack = true,
            (8, &[a, b, c, d, _, _, _, _]) => {
                asked.timestamps = Some(u32::from_be_bytes([a, b, c, d]));
            }
            _ => {}
        }
        at += len;
    }
    asked
}

/// Two bytes choose the settings, one says how many bytes of TCP options follow,
/// then come those of IP, and those of a later segment.
pub fn options(data: &[u8]) {
    let mut bytes = Bytes(data);
    // Timestamps and SACK are on, and checksums are judged.
    let settings = [bytes.u8(), bytes.u8() & !3, 0];
    let len = bytes.below(41);
    let syn_options = bytes.take(len);
    let len = bytes.below(41);
    let ip_options = bytes.take(len);

    let mut bed = Bed::new(&mut Bytes(&settings));
    let segment = bed.segment(0, flag::SYN, syn_options, &[]);
    // As they are on the wire: padded to whole words.
    let on_wire = segment.bytes()[20..].to_vec();
    let mut around = bed.around(0);
    around.extra = ip_options;
    bed.input(&frames::frame(&around, &segment.bytes()));
    bed.transmit(usize::MAX);
    let asked = plain(&on_wire);
    let said = match bed.said[..] {
        [said] => said,
        ref all => panic!("{} segments answer a SYN", all.len()),
    };
    judge(&asked, &said);

    // The handshake, and any options after it.
    bed.peers[0].seq = bed.peers[0].seq.wrapping_add(1);
    let time = (bed.now / MS) as u32;
    bed.peers[0].clock = asked.timestamps.unwrap_or(time).wrapping_sub(time);
    bed.send(0, flag::ACK, &[]);
    bed.turn();
    let (channel, flow) = *bed.names.back().expect("a flow that was accepted");
    let info = bed.stack.flow_info(channel, flow).expect("a flow that lives");
    let options_len = if asked.timestamps.is_some() { 12 } else { 0 };
    let most = asked.mss.unwrap_or(536).max(88) - options_len;
    assert!(info.mss <= most, "segments of {} where the peer asked for {most}", info.mss);
    let mut later = if bytes.flag() { bed.options(0) } else { Vec::new() };
    later.extend(bytes.0);
    let segment = bed.segment(0, flag::ACK | flag::PSH, &later, b"request");
    let frame = frames::frame(&bed.around(0), &segment.bytes());
    bed.input(&frame);
    bed.turn();
    bed.wind_down();
}

/// RFC 7323 sections 2.2 and 3.2, RFC 2018 section 2: an answer has what was
/// asked for and nothing else.
fn judge(asked: &Asked, said: &Said) {
    assert_eq!(said.flags & !0xc0, flag::SYN | flag::ACK);
    assert_eq!(said.src_port, PORT);
    assert!(said.mss.is_some(), "a SYN,ACK without MSS");
    assert_eq!(said.scale.is_some(), asked.scale, "{asked:?}");
    assert_eq!(said.sack_permitted, asked.sack, "{asked:?}");
    assert_eq!(said.time.is_some(), asked.timestamps.is_some(), "{asked:?}");
}
