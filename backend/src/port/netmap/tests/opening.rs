//! Opening: refusals and their words, and whose memory it becomes.

use super::super::attach::Sharing;
use super::super::model::Pages;
use super::*;

fn refused(host: Host, opening: &Opening) -> String {
    let model = Model::new(host);
    model.add_nic("ix0", NicKind::default());
    opening.open(&model, &Buffered::new(64, 2048)).unwrap_err().to_string()
}

#[test]
fn what_is_in_the_way_is_said_and_what_to_do() {
    let (host, ix0) = (Host::default(), Opening::netmap("ix0"));
    let link = Link { mtu: 1400, up: true, promiscuous: true, mac: HOST, index: 7 };
    for (host, opening, message) in [
        (
            Host { module: false, ..host },
            ix0.clone(),
            "port netmap:ix0: netmap module not loaded (there is no /dev/netmap): build netmap for \
             this kernel and `modprobe netmap`; FreeBSD's GENERIC kernel has it",
        ),
        (
            Host { permitted: false, ..host },
            ix0.clone(),
            "port netmap:ix0: this user may not open /dev/netmap: run as root, or `chgrp GROUP \
             /dev/netmap && chmod 660 /dev/netmap` for a group of this user's",
        ),
        (
            Host { api: 11, ..host },
            ix0.clone(),
            "port netmap:ix0: the netmap module does not speak API 14, which came in 2019: update \
             netmap to this or a later one",
        ),
        (
            host,
            Opening::netmap("ix7"),
            "port netmap:ix7: netmap knows no interface ix7: `ip link` lists them; a switch's port \
             is written vale0:NAME",
        ),
        (
            Host { rings: 1, ..host },
            Opening { share: false, ..ix0.clone() },
            "port netmap:ix0: netmap has not enough rings or buffers: raise its parameters \
             ring_num and buf_num, or for a VALE port and a pipe priv_ring_num and priv_buf_num \
             (sysctl dev.netmap on FreeBSD, /sys/module/netmap/parameters on Linux)",
        ),
        (
            host,
            Opening { share: false, ..Opening::netmap("ix0-3") },
            "port netmap:ix0: netmap refused the rings that were asked for: see the kernel's log; \
             an MTU of ix0 above netmap's buf_size is one reason, a ring that it does not have \
             another",
        ),
        (
            host,
            Opening { link: Some(link), ..ix0.clone() },
            "port netmap:ix0: its MTU is 1400, the guest's 1500: set `mtu = 1400` for the guest, \
             or `ip link set dev ix0 mtu 1500`",
        ),
        (
            host,
            Opening { share: false, fragments: false, mtu: 4000, ..ix0 },
            "port netmap:ix0: netmap's buffers have 2048 bytes, and the guest's MTU needs 4018: \
             raise netmap's buf_size, or set `mtu = 2030` for the guest",
        ),
    ] {
        assert_eq!(refused(host, &opening), message);
    }
}

#[test]
fn a_port_in_use_is_said_to_be() {
    let model = nics(NicKind::default());
    let first = End::open(&model, &Opening::netmap("ix0"));
    let buffered = Buffered::new(64, 2048);
    let error = Opening::netmap("ix0").open(&model, &buffered).unwrap_err();
    assert!(matches!(error, NetmapError::Busy { .. }), "{error}");
    assert_eq!(model.users("ix0"), 2);
    first.close();
    assert_eq!(model.users("ix0"), 0);
    Opening::netmap("ix0").open(&model, &buffered).unwrap();
}

#[test]
fn the_regions_buffers_are_netmaps_and_none_is_in_a_ring_at_first() {
    let model = nics(NicKind { rings: 2, ..NicKind::default() });
    for opening in [Opening::netmap("ix0"), Opening::vale("a")] {
        let end = End::open(&model, &opening);
        let attached = end.port.attached.as_ref().unwrap();
        let Sharing::Region(first) = attached.memory.sharing else { panic!("copied") };
        for ring in &attached.rx_rings {
            assert!(ring.buffers().iter().all(|&index| (2..first).contains(&index)));
        }
        for ring in &attached.tx_rings {
            assert!(ring.buffers().iter().all(|&index| (2..first).contains(&index)));
        }
        // The region's buffer 5, by netmap's number and place, is the same memory.
        let at = attached.memory.buffer(first + 5);
        assert!(attached.memory.area.write_bytes(at, b"the same"));
        let mut bytes = [0; 8];
        end.buffered.pool.buffers().read(5, 0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"the same");
        assert_eq!(attached.why_copied, None);
        end.close();
    }
}

#[test]
fn where_buffers_cannot_be_shared_they_are_netmaps_and_it_is_said_why() {
    let host = Host::default();
    let kind = NicKind::default();
    for (host, kind, opening, why) in [
        (
            Host { extmem: false, ..host },
            kind,
            Opening::netmap("ix0"),
            "this netmap was built without external memory (configure --enable-extmem)",
        ),
        (
            host,
            NicKind { offsets: false, ..kind },
            Opening::netmap("ix0"),
            "the driver lets frames begin nowhere but at a buffer's start",
        ),
        (
            Host { pages: Pages::Scattered, ..host },
            NicKind { slots: 512, ..kind },
            Opening::netmap("ix0"),
            "the rings need physically contiguous memory: set vm.nr_hugepages to 8 or more",
        ),
        (host, kind, Opening::netmap("ix0{1"), "a pipe's far end must not have a guest's buffers"),
        (host, kind, Opening::netmap("ix0*"), "the guest must not see the host's own frames"),
    ] {
        let model = Model::new(host);
        model.add_nic("ix0", kind);
        let end = End::open(&model, &opening);
        let attached = end.port.attached.as_ref().unwrap();
        assert_eq!(attached.memory.sharing, Sharing::Netmap);
        assert_eq!(attached.why_copied.as_deref(), Some(why));
        assert!(end.port.caps().gather);
        end.close();
    }
}

#[test]
fn buffers_larger_than_a_page_need_a_region_on_huge_pages() {
    let model = nics(NicKind::default());
    let end = End::with(&model, &Opening::netmap("ix0"), 64, 8192);
    assert_eq!(
        end.port.attached.as_ref().unwrap().why_copied.as_deref(),
        Some(
            "buffers of 8192 bytes need physically contiguous memory: keep the region on \
             hugetlbfs or device DAX, or set `buffer_size = 4096` or less"
        )
    );
}

#[test]
fn headers_are_kept_private_where_they_must_be() {
    let model = nics(NicKind::default());
    for (fragments, spoof_check, gather) in
        [(false, false, false), (false, true, true), (true, false, true), (true, true, true)]
    {
        let opening = Opening { fragments, spoof_check, ..Opening::netmap("ix0") };
        let end = End::open(&model, &opening);
        assert_eq!(end.port.caps().gather, gather, "{fragments} {spoof_check}");
        end.close();
    }
}
