//! The session: what messages do, and what becomes of those that are wrong.

use std::collections::BTreeSet;

use paste_abi::vhost_user::{
    ConfigHeader, ShMemConfig, ShMemMap, VringState, backend_request, request as id,
};
use zerocopy::{FromBytes, IntoBytes};

use super::super::control::RegionFd;
use super::super::message::{Descriptors, PAYLOAD_MAX, Payload, Reply, TABLE};
use super::*;

/// All requests of the front end that `paste-abi` names.
const KNOWN: [u32; 27] = [
    id::GET_FEATURES,
    id::SET_FEATURES,
    id::SET_OWNER,
    id::RESET_OWNER,
    id::SET_MEM_TABLE,
    id::SET_VRING_NUM,
    id::SET_VRING_ADDR,
    id::SET_VRING_BASE,
    id::GET_VRING_BASE,
    id::SET_VRING_KICK,
    id::SET_VRING_CALL,
    id::SET_VRING_ERR,
    id::GET_PROTOCOL_FEATURES,
    id::SET_PROTOCOL_FEATURES,
    id::GET_QUEUE_NUM,
    id::SET_VRING_ENABLE,
    id::NET_SET_MTU,
    id::SET_BACKEND_REQ_FD,
    id::GET_CONFIG,
    id::SET_CONFIG,
    id::RESET_DEVICE,
    id::GET_MAX_MEM_SLOTS,
    id::ADD_MEM_REG,
    id::REM_MEM_REG,
    id::SET_STATUS,
    id::GET_STATUS,
    id::GET_SHMEM_CONFIG,
];

/// A device that has negotiated and nothing else.
fn negotiated() -> Rig {
    let mut rig = Rig::new(MODERN);
    for ring in [RX, TX] {
        rig.ask(state(id::GET_VRING_BASE, ring as u32, 0));
    }
    rig
}

#[test]
fn the_table_has_one_row_for_each_message() {
    let ids: Vec<_> = TABLE.iter().map(|row| row.id).collect();
    assert_eq!(ids, KNOWN);
    assert!(ids.is_sorted_by(|a, b| a < b));
    let names: BTreeSet<_> = TABLE.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), TABLE.len());
    for row in TABLE {
        // The protocol's own naming: what is asked for is answered.
        assert_eq!(row.name.starts_with("GET_"), row.reply != Reply::Ack, "{}", row.name);
        if let Payload::Exactly(len) = row.payload {
            assert!(len <= PAYLOAD_MAX);
        }
    }
}

#[test]
fn offers_what_it_has() {
    let mut rig = Rig::new(MODERN);
    let features = rig.ask(message(id::GET_FEATURES, &[]));
    // GUEST_TSO4 and 6, HOST_TSO4, 6 and ECN.
    let segments = 0b11 << 7 | 0b111 << 11;
    let in_order = 1 << 35;
    let all = MODERN | EVENT_IDX | 0b1011 | 1 << 5 | 1 << 16 | in_order | segments;
    assert_eq!(u64::from_le_bytes(features.try_into().unwrap()), all);
    assert_eq!(rig.ask(message(id::GET_QUEUE_NUM, &[])), 2u64.to_le_bytes());
    let protocol = rig.ask(message(id::GET_PROTOCOL_FEATURES, &[]));
    assert_eq!(u64::from_le_bytes(protocol.try_into().unwrap()), PROTOCOL);
    // A path that completes no checksums does not offer them, nor what needs them.
    for (csum, rest) in [(false, all & !0b11 & !segments), (true, all & !segments)] {
        let options = DeviceOptions { csum, segments: !csum, ..options() };
        let (mut device, front) = attached(options);
        send(&front, &message(id::GET_FEATURES, &[]), 0);
        device.handle_messages().unwrap();
        let (_, features) = reply(&front).unwrap();
        assert_eq!(u64::from_le_bytes(features.try_into().unwrap()), rest);
    }
}

#[test]
fn refuses_features_that_were_not_offered() {
    let mut rig = negotiated();
    // LOG_ALL, a ring format, control queue.
    for bit in [26, 34, 17, 63] {
        assert_eq!(rig.ack(number(id::SET_FEATURES, MODERN | 1 << bit)), 1);
        assert_eq!(rig.ack(number(id::SET_PROTOCOL_FEATURES, PROTOCOL | 1 << bit)), 1);
    }
    // Without need_reply there is no way to tell, except to hang up.
    let error = rig.send(number(id::SET_FEATURES, 1 << 26)).unwrap_err();
    assert!(matches!(error, SessionError::Refused { .. }));
    assert!(error.to_string().starts_with("SET_FEATURES: feature bits 0x4000000"), "{error}");
}

#[test]
fn acknowledges_what_asks_for_it_once_negotiated() {
    let (mut device, front) = attached(options());
    send(&front, &message(id::SET_OWNER, &[]), FLAG_NEED_REPLY);
    device.handle_messages().unwrap();
    assert_eq!(reply(&front), None);
    send(&front, &number(id::SET_PROTOCOL_FEATURES, PROTOCOL), FLAG_NEED_REPLY);
    device.handle_messages().unwrap();
    assert_eq!(reply(&front), Some((id::SET_PROTOCOL_FEATURES, vec![0; 8])));
    send(&front, &message(id::SET_OWNER, &[]), 0);
    device.handle_messages().unwrap();
    assert_eq!(reply(&front), None);
}

#[test]
fn unknown_messages_are_passed_over() {
    let mut rig = negotiated();
    let (read, write) = pipe();
    // SET_LOG_BASE, SEND_RARP, one that does not exist yet.
    rig.send(message(6, &[0; 16]).with(write)).unwrap();
    assert!(is_closed(&read));
    rig.send(number(19, 0)).unwrap();
    assert_eq!(rig.ack(message(999, &[7; PAYLOAD_MAX])), 1);
    assert_eq!(rig.device.counters().messages_unknown, 3);
    assert_eq!(rig.ack(message(id::SET_OWNER, &[])), 0);
}

#[test]
fn messages_that_need_a_feature() {
    let (mut device, front) = attached(options());
    send(&front, &message(id::GET_STATUS, &[]), 0);
    let error = device.handle_messages().unwrap_err();
    assert!(error.to_string().contains("GET_STATUS: needs protocol feature"), "{error}");
}

#[test]
fn the_configuration_space() {
    let mut rig = negotiated();
    let config = |offset: u32, size: u32| {
        let header = ConfigHeader { offset: offset.into(), size: size.into(), flags: 0.into() };
        [header.as_bytes(), &vec![0; size as usize]].concat()
    };
    let space = rig.ask(message(id::GET_CONFIG, &config(0, 24)));
    assert_eq!(space[12..24], [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 0x05]);
    assert_eq!(space[24..], [0; 12]);
    assert_eq!(rig.ack(number(id::NET_SET_MTU, 1400)), 0);
    let mtu = rig.ask(message(id::GET_CONFIG, &config(10, 2)));
    assert_eq!(mtu[12..], 1400u16.to_le_bytes());
    for wrong in [0, 67, 1501, u64::MAX] {
        assert_eq!(rig.ack(number(id::NET_SET_MTU, wrong)), 1);
    }
    // Outside: an answer without payload.
    assert!(rig.ask(message(id::GET_CONFIG, &config(250, 7))).is_empty());
    assert!(rig.ask(message(id::GET_CONFIG, &config(u32::MAX, 1))).is_empty());
    assert_eq!(rig.ack(message(id::SET_CONFIG, &config(0, 6))), 1);
}

#[test]
fn the_status_is_kept_and_zero_resets() {
    let mut rig = Rig::new(MODERN);
    assert_eq!(rig.ack(number(id::SET_STATUS, 15)), 0);
    assert_eq!(rig.ask(message(id::GET_STATUS, &[])), 15u64.to_le_bytes());
    assert_eq!(rig.ack(number(id::SET_STATUS, 256)), 1);
    assert!(rig.device.is_running());
    rig.transmit(0, &frame(60));
    rig.take().unwrap();
    assert_eq!(rig.ack(number(id::SET_STATUS, 0)), 0);
    assert!(!rig.device.is_running());
    // Front ends ask for the position afterwards.
    let base = rig.ask(state(id::GET_VRING_BASE, TX as u32, 0));
    assert_eq!(VringState::read_from_bytes(&base).unwrap().num.get(), 1);
    assert_eq!(rig.used_idx(TX), 1);
}

#[test]
fn a_driver_that_begins_anew_is_noticed() {
    let mut rig = Rig::new(MODERN);
    let resets = rig.device.resets();
    let restart = |rig: &mut Rig, base: u32| {
        for ring in [RX, TX] {
            rig.ask(state(id::GET_VRING_BASE, ring as u32, 0));
            rig.send(state(id::SET_VRING_BASE, ring as u32, base)).unwrap();
            let (read, write) = pipe();
            rig.ends[ring].kick = write;
            rig.send(number(id::SET_VRING_KICK, ring as u64).with(read)).unwrap();
        }
    };
    // A pause is no reset.
    restart(&mut rig, 5);
    assert_eq!(rig.device.resets(), resets);
    restart(&mut rig, 0);
    assert_eq!(rig.device.resets(), resets + 1);
    rig.send(message(id::RESET_DEVICE, &[])).unwrap();
    assert_eq!(rig.device.resets(), resets + 2);
}

#[test]
fn ring_parameters_that_cannot_be() {
    let mut rig = negotiated();
    for size in [0, 3, 512, 0x1_0000, 0x1_0008, u32::MAX] {
        assert_eq!(rig.ack(state(id::SET_VRING_NUM, 0, size)), 1, "size {size}");
    }
    assert_eq!(rig.ack(state(id::SET_VRING_NUM, 0, 256)), 0);
    assert_eq!(rig.ack(state(id::SET_VRING_BASE, 0, 0x1_0000)), 1);
    assert_eq!(rig.ack(state(id::SET_VRING_ENABLE, 0, 2)), 1);
    for index in [2, 255, u32::MAX] {
        assert_eq!(rig.ack(state(id::SET_VRING_NUM, index, 8)), 1);
        assert_eq!(rig.ack(state(id::SET_VRING_BASE, index, 0)), 1);
        assert_eq!(rig.ack(state(id::SET_VRING_ENABLE, index, 1)), 1);
        let addr =
            VringAddr { index: index.into(), ..VringAddr::read_from_bytes(&[0; 40]).unwrap() };
        assert_eq!(rig.ack(message(id::SET_VRING_ADDR, addr.as_bytes())), 1);
    }
    let (read, write) = pipe();
    assert_eq!(rig.ack(number(id::SET_VRING_KICK, 2).with(write)), 1);
    assert!(is_closed(&read));
    let error = rig.send(state(id::GET_VRING_BASE, 2, 0)).unwrap_err();
    assert!(error.to_string().contains("ring 2 does not exist"), "{error}");
}

#[test]
fn ring_addresses_that_cannot_be() {
    let mut rig = negotiated();
    for (table, avail, used) in [
        // Unaligned.
        (A + 8, A + 0x1000, A + 0x2000),
        (A, A + 0x1001, A + 0x2000),
        (A, A + 0x1000, A + 0x2002),
        // Overlapping, and inside each other.
        (A, A + 0x70, A + 0x2000),
        (A, A + 0x1000, A + 0x1004),
        (A, A + 0x2000, A),
        // Across two ranges, and outside of all.
        (B - 0x40, A + 0x1000, A + 0x2000),
        (A, A + 0x1000, B + 0xfff0),
        (A, B + 0x2_0000, A + 0x2000),
    ] {
        assert_eq!(rig.ack(addresses(TX, table, avail, used)), 0, "not started yet");
        let (read, write) = pipe();
        let kick = number(id::SET_VRING_KICK, TX as u64).with(read);
        assert_eq!(rig.ack(kick), 1, "{table:#x} {avail:#x} {used:#x}");
        assert_eq!(rig.take(), None);
        rig.ask(state(id::GET_VRING_BASE, TX as u32, 0));
        drop(write);
    }
    // Logging was not offered.
    let mut logged = addresses(TX, A, A + 0x1000, A + 0x2000);
    logged.payload[4] = 1;
    assert_eq!(rig.ack(logged), 1);
}

#[test]
fn a_running_ring_does_not_change() {
    let mut rig = Rig::new(MODERN);
    assert_eq!(rig.ack(state(id::SET_VRING_NUM, TX as u32, 16)), 1);
    assert_eq!(rig.ack(state(id::SET_VRING_BASE, TX as u32, 3)), 1);
    assert_eq!(rig.ack(addresses(TX, B, B + 0x1000, B + 0x2000)), 1);
    assert_eq!(rig.ack(number(id::SET_FEATURES, MODERN | EVENT_IDX)), 1);
    // What is the same already is no change.
    assert_eq!(rig.ack(number(id::SET_FEATURES, MODERN)), 0);
    let same = addresses(TX, table_of(TX), avail_of(TX), used_of(TX));
    assert_eq!(rig.ack(same), 0);
    rig.transmit(0, &frame(60));
    assert_eq!(rig.take().unwrap(), frame(60));
}

#[test]
fn a_wrong_size_ends_the_session() {
    for row in TABLE {
        for len in [0, 7, 9, 41, PAYLOAD_MAX] {
            let mut rig = Rig::new(MODERN);
            let payload = vec![0; len];
            if row.payload.expected_instead(&payload).is_none() {
                continue;
            }
            let error = rig.send(message(row.id, &payload)).unwrap_err();
            assert!(matches!(error, SessionError::PayloadSize { .. }), "{}: {error}", row.name);
        }
    }
    let mut rig = Rig::new(MODERN);
    let error = rig.send(message(999, &[0; PAYLOAD_MAX + 1])).unwrap_err();
    assert!(matches!(error, SessionError::TooLarge { .. }));
}

#[test]
fn a_wrong_number_of_descriptors_closes_them_and_the_session() {
    for row in TABLE {
        let payload = match row.payload {
            Payload::Exactly(len) => vec![0; len],
            Payload::MemTable => vec![0; 8],
            Payload::Config => vec![0; 12],
        };
        let too_many = match row.descriptors {
            Descriptors::None | Descriptors::PerRegion => 1,
            Descriptors::One | Descriptors::UnlessNoFd | Descriptors::Ignored => 2,
        };
        for count in [0, too_many] {
            if row.descriptors.expected_instead(&payload, count).is_none() {
                continue;
            }
            let mut rig = Rig::new(MODERN);
            let (read, write) = pipe();
            let mut wrong = message(row.id, &payload);
            wrong.fds.extend((0..count).map(|_| write.try_clone().unwrap()));
            drop(write);
            let error = rig.send(wrong).unwrap_err();
            assert!(matches!(error, SessionError::DescriptorCount { .. }), "{}", row.name);
            assert!(is_closed(&read), "{}", row.name);
        }
    }
}

#[test]
fn flags_of_another_protocol() {
    for flags in [0u32, 2, 3, FLAG_VERSION | FLAG_REPLY] {
        let (mut device, front) = attached(options());
        let mut bytes = message(id::SET_OWNER, &[]).bytes(0);
        bytes[4..8].copy_from_slice(&flags.to_le_bytes());
        fds::send(&front, &bytes, &[]).unwrap();
        assert!(matches!(device.handle_messages(), Err(SessionError::Flags { .. })));
    }
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let file = memory_file();
    let (mut device, front) = attached(options());
    let (messages, _ends) = transcript(MODERN, 8, &file);
    for message in messages {
        let bytes = message.bytes(0);
        let borrowed: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
        for (i, byte) in bytes.iter().enumerate() {
            // The descriptors come in the middle.
            let with: &[_] = if i == bytes.len() / 2 { &borrowed } else { &[] };
            fds::send(&front, &[*byte], with).unwrap();
            device.handle_messages().unwrap();
        }
    }
    assert!(device.is_running());
}

#[test]
fn many_messages_at_once() {
    let (mut device, front) = attached(options());
    for _ in 0..100 {
        send(&front, &message(id::SET_OWNER, &[]), 0);
    }
    device.handle_messages().unwrap();
    let first = device.counters().messages;
    assert!(first < 100, "one call is bounded");
    device.handle_messages().unwrap();
    assert_eq!(device.counters().messages, 100);
}

#[test]
fn a_front_end_that_does_not_read_its_replies() {
    let (mut device, front) = attached(options());
    let ended = (0..100_000).find_map(|_| {
        send(&front, &message(id::GET_FEATURES, &[]), 0);
        device.handle_messages().err()
    });
    assert!(matches!(ended, Some(SessionError::ReplyBlocked { .. })));
}

#[test]
fn a_disconnect_at_every_byte_leaves_nothing_behind() {
    let file = memory_file();
    let (messages, _) = transcript(MODERN, 8, &file);
    let lengths: Vec<_> = messages.iter().map(|m| m.bytes(0).len()).collect();
    drop(messages);
    for (cut, &len) in lengths.iter().enumerate() {
        for bytes in [0, 1, 11, 12, 13, len] {
            let bytes = bytes.min(len);
            let (mut device, front) = attached(options());
            let (messages, ends) = transcript(MODERN, 8, &file);
            for (i, message) in messages.into_iter().enumerate().take(cut + 1) {
                let take = if i == cut { bytes } else { message.bytes(0).len() };
                let borrowed: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
                if take > 0 {
                    fds::send(&front, &message.bytes(0)[..take], &borrowed).unwrap();
                    device.handle_messages().unwrap();
                }
            }
            while reply(&front).is_some() {}
            drop(front);
            let error = device.handle_messages().unwrap_err();
            match bytes {
                0 => assert!(matches!(error, SessionError::Closed)),
                bytes if bytes == len => assert!(matches!(error, SessionError::Closed)),
                bytes => assert!(matches!(error, SessionError::Truncated(n) if n == bytes)),
            }
            device.detach();
            assert_eq!(device.watch().count(), 0);
            for ends in &ends {
                assert!(is_closed(&ends.call) && is_closed(&ends.err));
                assert!(rustix::io::write(&ends.kick, &[1]).is_err());
            }
            // The next front end finds a device as new.
            let (front, back) = UnixStream::pair().unwrap();
            device.attach(back).unwrap();
            send(&front, &message(id::GET_FEATURES, &[]), 0);
            device.handle_messages().unwrap();
            assert!(reply(&front).is_some());
        }
    }
}

#[test]
fn repeated_messages_keep_one_descriptor() {
    let mut rig = Rig::new(MODERN);
    for request in [id::SET_VRING_KICK, id::SET_VRING_CALL, id::SET_VRING_ERR] {
        let mut old: Option<OwnedFd> = None;
        for _ in 0..100 {
            let (read, write) = pipe();
            let (ours, theirs) =
                if request == id::SET_VRING_KICK { (write, read) } else { (read, write) };
            assert_eq!(rig.ack(number(request, TX as u64).with(theirs)), 0);
            if let Some(old) = old.replace(ours) {
                let gone = match request {
                    id::SET_VRING_KICK => rustix::io::write(&old, &[1]).is_err(),
                    _ => is_closed(&old),
                };
                assert!(gone);
            }
        }
        // And none at all.
        assert_eq!(rig.ack(number(request, TX as u64 | NO_FD)), 0);
    }
    assert_eq!(rig.device.watch().count(), 2);
    // Without a call descriptor nobody is told, and nothing fails.
    rig.transmit(0, &frame(60));
    rig.take().unwrap();
    rig.device.flush();
    assert_eq!(rig.used_idx(TX), 1);
}

#[test]
fn a_second_session_is_refused() {
    let (mut device, _front) = attached(options());
    let (_other, back) = UnixStream::pair().unwrap();
    assert_eq!(device.attach(back).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
}

/// A device with a region, its front end, and the front end's end of the back
/// end's own channel.
fn with_region() -> (Device, UnixStream, UnixStream) {
    let region = RegionFd { fd: memory_file(), offset: 0x2000, len: 0x4000 };
    let (mut device, front) = attached(DeviceOptions { region: Some(region), ..options() });
    send(&front, &message(id::GET_PROTOCOL_FEATURES, &[]), 0);
    device.handle_messages().unwrap();
    let (_, offered) = reply(&front).unwrap();
    let offered = u64::from_le_bytes(offered.try_into().unwrap());
    assert_eq!(
        offered,
        PROTOCOL | protocol::BACKEND_REQ | protocol::BACKEND_SEND_FD | protocol::SHMEM
    );
    send(&front, &number(id::SET_PROTOCOL_FEATURES, offered), 0);
    let (asked, channel) = UnixStream::pair().unwrap();
    let message = message(id::SET_BACKEND_REQ_FD, &[]).with(channel.into());
    send(&front, &message, 0);
    device.handle_messages().unwrap();
    (device, front, asked)
}

fn take_map(asked: &UnixStream) -> Option<ShMemMap> {
    let mut bytes = [0; size_of::<Header>() + size_of::<ShMemMap>()];
    let mut descriptors = Vec::new();
    let received = fds::receive(asked, &mut bytes, &mut descriptors).ok()?;
    assert_eq!((received.bytes, descriptors.len()), (bytes.len(), 1));
    let header = Header::read_from_prefix(&bytes).unwrap().0;
    assert_eq!(header.request.get(), backend_request::SHMEM_MAP);
    assert_eq!(header.flags.get(), FLAG_VERSION | FLAG_NEED_REPLY);
    Some(ShMemMap::read_from_bytes(&bytes[size_of::<Header>()..]).unwrap())
}

fn answer_map(asked: &UnixStream, value: u64) {
    let mut answer = number(backend_request::SHMEM_MAP, value).bytes(FLAG_REPLY);
    let rest = answer.split_off(5);
    fds::send(asked, &answer, &[]).unwrap();
    fds::send(asked, &rest, &[]).unwrap();
}

#[test]
fn the_region_is_mapped_by_the_front_end() {
    let (mut device, front, asked) = with_region();
    send(&front, &message(id::GET_SHMEM_CONFIG, &[]), 0);
    device.handle_messages().unwrap();
    let (_, config) = reply(&front).unwrap();
    let config = ShMemConfig::read_from_bytes(&config).unwrap();
    assert_eq!((config.nregions.get(), config.memory_sizes[0].get()), (1, 0x4000));
    assert!(config.memory_sizes[1..].iter().all(|size| size.get() == 0));

    let map = take_map(&asked).unwrap();
    assert_eq!((map.shmid, map.fd_offset.get(), map.shm_offset.get()), (0, 0x2000, 0));
    assert_eq!((map.len.get(), map.flags.get()), (0x4000, 1));
    assert!(!device.is_region_mapped());
    answer_map(&asked, 0);
    device.handle_messages().unwrap();
    assert!(device.is_region_mapped());
    // Not asked twice, but again with the driver after a reset.
    send(&front, &number(id::SET_FEATURES, MODERN), 0);
    device.handle_messages().unwrap();
    assert!(take_map(&asked).is_none());
    send(&front, &message(id::RESET_DEVICE, &[]), 0);
    send(&front, &number(id::SET_FEATURES, MODERN), 0);
    device.handle_messages().unwrap();
    assert!(take_map(&asked).is_some());
}

#[test]
fn a_back_end_channel_that_misbehaves_is_given_up() {
    for (request, flags, value) in [
        (backend_request::SHMEM_MAP, FLAG_REPLY, 1),
        (backend_request::SHMEM_MAP, 0, 0),
        (backend_request::SHMEM_UNMAP, FLAG_REPLY, 0),
    ] {
        let (mut device, front, asked) = with_region();
        take_map(&asked).unwrap();
        assert_eq!(device.watch().count(), 2);
        fds::send(&asked, &number(request, value).bytes(flags), &[]).unwrap();
        let generation = device.watch_generation();
        device.handle_messages().unwrap();
        assert!(!device.is_region_mapped());
        assert_ne!(device.watch_generation(), generation);
        assert_eq!(device.watch().count(), 1);
        // The session goes on.
        send(&front, &message(id::GET_FEATURES, &[]), 0);
        device.handle_messages().unwrap();
        assert!(reply(&front).is_some());
    }
    let (mut device, _front, asked) = with_region();
    drop(asked);
    device.handle_messages().unwrap();
    assert_eq!(device.watch().count(), 1);
}

mod random {
    use proptest::prelude::*;

    use super::*;

    fn words() -> impl Strategy<Value = Vec<u8>> {
        // Words near zero are more often meaningful than any bytes.
        let word = prop_oneof![0..48u32, any::<u32>()];
        prop::collection::vec(word, 0..70)
            .prop_map(|words| words.into_iter().flat_map(u32::to_le_bytes).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// Any bytes, with any number of descriptors: an error at the worst,
        /// and every descriptor closed in the end.
        #[test]
        fn any_bytes(chunks in prop::collection::vec((words(), 0..4usize), 1..8)) {
            let (mut device, front) = attached(options());
            let (read, write) = pipe();
            for (bytes, count) in chunks {
                if bytes.is_empty() {
                    continue;
                }
                let descriptors = vec![write.as_fd(); count];
                let _ = fds::send(&front, &bytes, &descriptors);
                if device.handle_messages().is_err() {
                    break;
                }
            }
            device.detach();
            drop((front, write));
            prop_assert!(is_closed(&read));
        }

        /// Well-formed messages with any contents, in any order.
        #[test]
        fn any_messages(
            messages in prop::collection::vec(
                (0..TABLE.len(), prop::collection::vec(0..4u8, 300), any::<bool>(), any::<u8>()),
                1..40,
            ),
        ) {
            let mut rig = Rig::new(MODERN | EVENT_IDX);
            for (row, mut payload, need_reply, byte) in messages {
                let row = &TABLE[row];
                payload[usize::from(byte) % 8] = byte;
                let want = row.payload.expected_instead(&payload).unwrap_or(payload.len());
                let mut message = message(row.id, &payload[..want]);
                let want = row.descriptors.expected_instead(&message.payload, 0).unwrap_or(0);
                for _ in 0..want.min(8) {
                    message.fds.push(if byte % 2 == 0 { pipe().0 } else { memory_file() });
                }
                let flags = if need_reply { FLAG_NEED_REPLY } else { 0 };
                if rig.send_with(message, flags).is_err() {
                    break;
                }
                rig.drain_replies();
                let mut out = [0; 256];
                let _ = rig.device.next_tx(&mut out);
                let _ = rig.device.push_rx(&[&[0; 60]], &NetHdr::default());
                rig.device.flush();
                rig.device.arm();
            }
        }
    }
}
