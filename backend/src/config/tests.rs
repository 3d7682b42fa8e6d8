//! Each wrong configuration, and exactly what is said of it.

use super::*;

/// A guest that is right, as the lines of its table after `[[guest]]`.
const RIGHT: [&str; 6] = [
    "name = \"web1\"",
    "socket = \"/run/web1.sock\"",
    "mac = \"52:54:00:00:00:01\"",
    "addresses = [\"10.7.0.2/24\"]",
    "gateway = \"10.7.0.1\"",
    "port = \"tap:tap0\"",
];

/// The text of a guest with some lines replaced or, where there is no such key
/// yet, added behind the others.
fn guest(changes: &[&str]) -> String {
    let key = |line: &str| line.split('=').next().unwrap().trim().to_owned();
    let mut lines: Vec<String> = RIGHT.iter().map(|line| (*line).to_owned()).collect();
    for change in changes {
        match lines.iter_mut().find(|line| key(line) == key(change)) {
            Some(line) => *line = (*change).to_owned(),
            None => lines.push((*change).to_owned()),
        }
    }
    format!("[[guest]]\n{}\n", lines.join("\n"))
}

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse("web.toml", text)
}

/// Asserts that the text is refused, with these lines.
#[track_caller]
fn refused(text: &str, lines: &[&str]) {
    match parse(text) {
        Ok(config) => panic!("accepted:\n{text}\nas {config:?}"),
        Err(errors) => assert_eq!(errors.to_string(), lines.join("\n"), "\n{text}"),
    }
}

#[test]
fn the_least_that_a_guest_needs() {
    let config = parse(&guest(&[])).unwrap();
    assert_eq!((config.log, config.stats.clone()), (Log::default(), None));
    let [guest] = config.guests.as_slice() else { panic!("{config:?}") };
    assert_eq!(guest.name, "web1");
    let socket = Socket { path: "/run/web1.sock".into(), mode: SocketMode::Server };
    assert_eq!(guest.socket, Some(socket));
    assert_eq!(guest.mac.octets(), [0x52, 0x54, 0, 0, 0, 1]);
    let [address] = guest.addresses.as_slice() else { panic!("{guest:?}") };
    assert_eq!(address.to_string(), "10.7.0.2/24");
    assert_eq!(guest.gateways, [IpAddr::from([10, 7, 0, 1])]);
    assert_eq!((guest.address(), guest.vlan), ([10, 7, 0, 2].into(), None));
    assert_eq!(guest.port.to_string(), "tap:tap0");
    assert_eq!(
        guest.region,
        RegionSpec {
            size: 64 << 20,
            path: None,
            segment: false,
            mirror: None,
            buffer_size: 2048,
            pmem_socket: None
        }
    );
    assert_eq!(guest.poll, Poll::For(Duration::from_micros(50)));
    assert!(guest.spoof_check && guest.sources.is_empty() && !guest.accept_ra);
    assert_eq!((guest.flows_max, guest.mtu), (16384, 1500));
}

#[test]
fn everything_that_can_be_said() {
    let text = format!(
        "stats = \"/run/stats.json\"\nlog = {{ level = \"debug\", format = \"json\" }}\n{}",
        guest(&[
            "socket = { path = \"/run/vmm.sock\", mode = \"client\" }",
            "region = { size = \"1 GiB\", path = \"/dev/shm/web1\", mirror = \"/srv/web1\", buffer_size = 16384, pmem_socket = \"/run/p.sock\" }",
            "poll = \"always\"",
            "spoof_check = false",
            "accept_ra = true",
            "addresses = [\"fd00:7::2/64\", \"10.7.0.2/24\"]",
            "gateway = [\"10.7.0.1\", \"fe80::1\"]",
            "vlan = 4094",
            "flows_max = 1_000",
            "mtu = 9000",
        ])
    );
    let config = parse(&text).unwrap();
    assert_eq!(config.log, Log { level: LogLevel::Debug, format: LogFormat::Json });
    assert_eq!(config.stats, Some("/run/stats.json".into()));
    let guest = &config.guests[0];
    assert_eq!(guest.socket.as_ref().unwrap().mode, SocketMode::Client);
    let (path, mirror) = (Some("/dev/shm/web1".into()), Some("/srv/web1".into()));
    let pmem_socket = Some(Socket { path: "/run/p.sock".into(), mode: SocketMode::Server });
    let size = 1 << 30;
    assert_eq!(
        guest.region,
        RegionSpec { size, path, segment: false, mirror, buffer_size: 16384, pmem_socket }
    );
    assert_eq!(guest.poll, Poll::Always);
    assert!(!guest.spoof_check && guest.accept_ra);
    assert_eq!((guest.flows_max, guest.mtu), (1000, 9000));
    let addresses: Vec<String> = guest.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["fd00:7::2/64", "10.7.0.2/24"]);
    assert_eq!((guest.gateways.len(), guest.vlan), (2, Some(4094)));
    assert_eq!(guest.address(), IpAddr::from([10, 7, 0, 2]));
}

#[test]
fn sources_are_addresses_and_networks_or_any() {
    let sources = |text: &str| {
        let line = format!("sources = {text}");
        parse(&guest(&[&line])).unwrap().guests[0].sources.clone()
    };
    let given = sources("[\"10.7.0.9\", \"10.8.0.0/16\", \"fd00:7::/64\"]");
    let has = |address: &str| given.iter().any(|n| n.contains(address.parse().unwrap()));
    assert!(has("10.7.0.9") && has("10.8.255.1") && has("fd00:7::ffff"));
    assert!(!has("10.7.0.8") && !has("10.9.0.0") && !has("fd00:8::1"));
    assert_eq!(sources("\"any\""), Network::ANY);
    assert!(sources("[]").is_empty());
}

#[test]
fn addresses_may_be_those_of_the_guests_kernel() {
    const GUEST: &str = "addresses = \"guest\"";
    let networks = "sources = [\"fd00:7::9\", \"10.7.0.0/24\", \"10.7.0.2\", \"10.7.0.3\"]";
    let config = parse(&guest(&[GUEST, networks])).unwrap();
    let found = &config.guests[0];
    assert!(found.shares_addresses && found.addresses.is_empty());
    assert_eq!(found.address(), Ipv6Addr::UNSPECIFIED, "it is not known yet");
    let singles: Vec<_> = found.single_sources().map(|address| address.to_string()).collect();
    assert_eq!(singles, ["10.7.0.2", "fd00:7::9"]);
    let link = |gateway: &str| found.link_of(gateway.parse().unwrap());
    assert_eq!(link("10.7.0.1").map(|network| network.prefix_len()), Some(24));
    assert_eq!((link("10.7.0.2"), link("10.8.0.1")), (link("10.7.0.1"), None));
    assert!(!parse(&guest(&[])).unwrap().guests[0].shares_addresses);
    // Where frames are not checked, nothing need be said of them.
    let mut unchecked = guest(&[GUEST, "spoof_check = false"]);
    unchecked = unchecked.replace("gateway = \"10.7.0.1\"\n", "");
    assert!(parse(&unchecked).is_ok());

    refused(
        &guest(&[GUEST]).replace("gateway = \"10.7.0.1\"\n", ""),
        &[
            "web.toml:5:13: guest \"web1\": addresses = \"guest\" needs sources, which say what its \
            kernel's addresses may be: give sources = [\"10.7.0.0/24\"], or \"any\"",
        ],
    );
    refused(
        &guest(&[GUEST, "sources = \"any\""]),
        &["web.toml:6:11: guest \"web1\": gateway 10.7.0.1 is in no network of sources: with \
            addresses = \"guest\" they say which one the guest's link is, as in sources = \
            [\"10.7.0.0/24\"]"],
    );
    refused(
        &guest(&[GUEST, networks, "port = \"sockets:\""]),
        &["web.toml:7:8: guest \"web1\": addresses = \"guest\" needs a port with frames of the \
            guest's kernel, and sockets: has none: give addresses, or another port"],
    );
    refused(
        &guest(&[GUEST, "sources = [\"10.7.0.0/24\"]", "port = \"xdp:eth1\""]),
        &["web.toml:7:8: guest \"web1\": xdp:DEVICE[@QUEUE][?mode=driver|generic] finds \
            the guest by its addresses: with \
            addresses = \"guest\", give them one by one in sources, as in sources = \
            [\"10.7.0.2\"]"],
    );
    let several = format!("workers = 2\n{}", guest(&[GUEST, networks, "worker = [0, 1]"]));
    refused(
        &several,
        &["web.toml:10:10: guest \"web1\": several workers are not possible with addresses = \
            \"guest\": give one"],
    );
}

#[test]
fn a_limit_is_of_what_is_named_and_no_more() {
    let limits = |text: &str| {
        let line = format!("rate_limit = {text}");
        parse(&guest(&[&line])).unwrap().guests[0].rate_limit
    };
    let given = limits("{ tx_packets = 1_000, tx_bytes = \"100MiB\", rx_bytes = \"1GiB\" }");
    assert_eq!((given.tx.packets, given.tx.bytes), (Some(1000), Some(100 << 20)));
    assert_eq!((given.rx.packets, given.rx.bytes), (None, Some(1 << 30)));
    assert!(limits("{}").is_none());
}

#[test]
fn one_wrong_value_is_named_with_its_place() {
    for (change, message) in [
        (
            "name = \"Web 1\"",
            "2:8: guest 1: name \"Web 1\" is not possible: use 1 to 63 of a-z, 0-9 and -",
        ),
        ("name = 7", "2:8: guest 1: name is an integer: write name = \"web1\""),
        (
            "socket = \"\"",
            "3:10: guest \"web1\": socket has no path: write socket = \"/run/pasted/web1.sock\"",
        ),
        (
            "socket = { mode = \"client\" }",
            "3:10: guest \"web1\": socket: path is missing: write path = \"/run/pasted/web1.sock\"",
        ),
        (
            "socket = { path = \"/s\", mode = \"clint\" }",
            "3:32: guest \"web1\": socket: mode \"clint\" is unknown: use \"server\" or \"client\"",
        ),
        (
            "mac = \"52:54:00:00:00\"",
            "4:7: guest \"web1\": mac \"52:54:00:00:00\" is no Ethernet address: write six pairs of hexadecimal digits, as in 52:54:00:00:00:01",
        ),
        (
            "mac = \"53:54:00:00:00:01\"",
            "4:7: guest \"web1\": mac 53:54:00:00:00:01 is a multicast address: use one whose first byte is even",
        ),
        (
            "mac = \"00:00:00:00:00:00\"",
            "4:7: guest \"web1\": mac 00:00:00:00:00:00 is nobody's address: use one such as 52:54:00:00:00:01",
        ),
        (
            "addresses = []",
            "5:13: guest \"web1\": addresses is empty: give an IPv4 address, an IPv6 address, or one of each",
        ),
        (
            "addresses = [\"10.7.0.2/24\", \"10.7.0.3/24\"]",
            "5:29: guest \"web1\": address 10.7.0.3 is a second one of IPv4: give one of each family at most",
        ),
        (
            "addresses = \"10.7.0.2/24\"",
            "5:13: guest \"web1\": addresses is a string: write addresses = [\"10.7.0.2/24\"], or \"guest\"",
        ),
        (
            "addresses = [\"10.7.0.2\"]",
            "5:14: guest \"web1\": address 10.7.0.2 has no prefix length: write it as in 10.7.0.2/24",
        ),
        (
            "addresses = [\"10.7.0.2/33\"]",
            "5:14: guest \"web1\": address \"10.7.0.2/33\" is no address: write it with its prefix length, as in 10.7.0.2/24 or fd00:7::2/64",
        ),
        (
            "addresses = [\"10.7.0.2/0\"]",
            "5:14: guest \"web1\": address \"10.7.0.2/0\" is no address: write it with its prefix length, as in 10.7.0.2/24 or fd00:7::2/64",
        ),
        (
            "addresses = [\"10.7.0.2/24\", \"fd00:7::2\"]",
            "5:29: guest \"web1\": address fd00:7::2 has no prefix length: write it as in fd00:7::2/64",
        ),
        (
            "addresses = [\"10.7.0.2/24\", \"fd00:7::2/129\"]",
            "5:29: guest \"web1\": address \"fd00:7::2/129\" is no address: write it with its prefix length, as in 10.7.0.2/24 or fd00:7::2/64",
        ),
        (
            "addresses = [\"10.7.0.2/24\", \"fd00:7::/64\"]",
            "5:29: guest \"web1\": address fd00:7::/64 names the network or its broadcast address: use a host's address within it",
        ),
        (
            "addresses = [\"10.7.0.2/24\", \"fe80::2/64\"]",
            "5:29: guest \"web1\": address fe80::2 is a link-local address, which the guest has anyway: use a global or local one",
        ),
        (
            "addresses = [\"10.7.0.2/24\", \"ff02::1/64\"]",
            "5:29: guest \"web1\": address ff02::1 cannot be a host's address on a network: use a unicast address",
        ),
        (
            "addresses = [\"10.7.0.2/24\", \"::ffff:10.7.0.3/120\"]",
            "5:29: guest \"web1\": address ::ffff:10.7.0.3 cannot be a host's address on a network: use a unicast address",
        ),
        (
            "gateway = \"fd00:7::1\"",
            "6:11: guest \"web1\": gateway fd00:7::1 is of IPv6: give an IPv6 address too",
        ),
        (
            "gateway = [\"10.7.0.1\", \"10.7.0.3\"]",
            "6:24: guest \"web1\": gateway 10.7.0.3 is a second one of IPv4: give one of each family at most",
        ),
        (
            "gateway = 7",
            "6:11: guest \"web1\": gateway is an integer: write gateway = \"10.7.0.1\" or [\"10.7.0.1\", \"fd00:7::1\"]",
        ),
        (
            "vlan = 4095",
            "8:8: guest \"web1\": vlan 4095 is not possible: use a number from 1 to 4094",
        ),
        ("vlan = \"a\"", "8:8: guest \"web1\": vlan is a string: write vlan = 1"),
        (
            "addresses = [\"224.0.0.1/4\"]",
            "5:14: guest \"web1\": address 224.0.0.1 cannot be a host's address on a network: use a unicast address",
        ),
        (
            "addresses = [\"10.7.0.2/24\", \"::1/128\"]",
            "5:29: guest \"web1\": address ::1 cannot be a host's address on a network: use a unicast address",
        ),
        (
            "addresses = [\"10.7.0.2/24\", \"::/128\"]",
            "5:29: guest \"web1\": address :: cannot be a host's address on a network: use a unicast address",
        ),
        (
            "addresses = [\"10.7.0.255/24\"]",
            "5:14: guest \"web1\": address 10.7.0.255/24 names the network or its broadcast address: use a host's address within it",
        ),
        (
            "gateway = \"10.8.0.1\"",
            "6:11: guest \"web1\": gateway 10.8.0.1 is not in 10.7.0.2/24: use an address of that network",
        ),
        (
            "gateway = \"10.7.0.2\"",
            "6:11: guest \"web1\": gateway 10.7.0.2 is the guest's own address: use the router's",
        ),
        (
            "gateway = \"10.7.0.0\"",
            "6:11: guest \"web1\": gateway 10.7.0.0 names the network 10.7.0.2/24 or its broadcast address: use the router's",
        ),
        (
            "gateway = \"router\"",
            "6:11: guest \"web1\": gateway \"router\" is no address: write gateway = \"10.7.0.1\" or [\"10.7.0.1\", \"fd00:7::1\"]",
        ),
        (
            "port = \"tap:\"",
            "7:8: guest \"web1\": port: the device's name is missing: write tap:NAME",
        ),
        (
            "region = \"disk\"",
            "8:10: guest \"web1\": region \"disk\" is unknown: write region = { size = \"64MiB\" } or region = \"memory\"",
        ),
        ("region = {}", "8:10: guest \"web1\": region: size is missing: write size = \"64MiB\""),
        (
            "region = { size = 64 }",
            "8:19: guest \"web1\": region: size is an integer: write size = \"64MiB\"",
        ),
        (
            "region = { size = \"64MB\" }",
            "8:19: guest \"web1\": region: size \"64MB\" is no size: write size = \"64MiB\"",
        ),
        (
            "region = { size = \"2MiB\" }",
            "8:19: guest \"web1\": region: size 2MiB is not possible: use a multiple of 2MiB from 4MiB to 64GiB",
        ),
        (
            "region = { size = \"5MiB\" }",
            "8:19: guest \"web1\": region: size 5MiB is not possible: use a multiple of 2MiB from 4MiB to 64GiB",
        ),
        (
            "region = { size = \"64MiB\", buffer_size = 3000 }",
            "8:42: guest \"web1\": region: buffer_size 3000 is not possible: use a power of two from 2048 to 65536",
        ),
        (
            "region = { size = \"64MiB\", path = \"\" }",
            "8:35: guest \"web1\": region: path names no file: write path = \"/dev/shm/web1.region\"",
        ),
        (
            "poll = \"50\"",
            "8:8: guest \"web1\": poll \"50\" is not possible: write \"50us\", \"1ms\", \"0\" (at most 10s) or \"always\"",
        ),
        (
            "poll = \"1min\"",
            "8:8: guest \"web1\": poll \"1min\" is not possible: write \"50us\", \"1ms\", \"0\" (at most 10s) or \"always\"",
        ),
        (
            "region = { size = \"4MiB\", path = \"/srv/r\", mirror = \"/srv/r\" }",
            "8:10: guest \"web1\": region: mirror is the region's own path: name another file, or leave it out",
        ),
        (
            "region = { size = \"4MiB\", mirror = \"\" }",
            "8:36: guest \"web1\": region: mirror names no file: write mirror = \"/var/lib/pasted/web1.mirror\"",
        ),
        (
            "region = { size = \"4MiB\", pmem_socket = \"\" }",
            "8:41: guest \"web1\": region: pmem_socket has no path: write pmem_socket = \"/run/pasted/web1-pmem.sock\"",
        ),
        (
            "region = { size = \"4MiB\", segment = true, path = \"/srv/r\" }",
            "8:10: guest \"web1\": region: path is not possible with segment = true, which is \
             memory of the VMM's: leave one of them out",
        ),
        (
            "region = { size = \"4MiB\", segment = true }",
            "8:10: guest \"web1\": segment = true is not possible with a socket: its VMM asks on \
             the control socket",
        ),
        (
            "spoof_check = \"no\"",
            "8:15: guest \"web1\": spoof_check is a string: write spoof_check = true or false",
        ),
        (
            "accept_ra = true",
            "8:13: guest \"web1\": accept_ra is of IPv6: give an IPv6 address too, or leave it out",
        ),
        (
            "accept_ra = 1",
            "8:13: guest \"web1\": accept_ra is an integer: write accept_ra = true or false",
        ),
        (
            "sources = \"some\"",
            "8:11: guest \"web1\": sources is a string: write sources = [\"10.7.0.9\", \
             \"fd00:7::/64\"] or \"any\"",
        ),
        (
            "sources = [\"10.7.0.9/24\"]",
            "8:12: guest \"web1\": source \"10.7.0.9/24\" is neither an address nor a network \
             with no bit set behind its prefix: write sources = [\"10.7.0.9\", \"fd00:7::/64\"] or \
             \"any\"",
        ),
        (
            "sources = \"any\"\nspoof_check = false",
            "8:11: guest \"web1\": sources are of no use without spoof_check: leave one of them out",
        ),
        (
            "rate_limit = \"1GiB\"",
            "8:14: guest \"web1\": rate_limit is a string: write rate_limit = { tx_packets = \
             100000, tx_bytes = \"100MiB\" }",
        ),
        (
            "rate_limit = { tx_packets = 0 }",
            "8:29: guest \"web1\": rate_limit: tx_packets 0 is not possible: use a number from 1 \
             to 4294967295",
        ),
        (
            "rate_limit = { rx_bytes = \"2TiB\" }",
            "8:27: guest \"web1\": rate_limit: rx_bytes \"2TiB\" is not possible: write a size of \
             1 byte to 1TiB, as in rx_bytes = \"100MiB\"",
        ),
        (
            "flows_max = 0",
            "8:13: guest \"web1\": flows_max 0 is not possible: use a number from 1 to 1048576",
        ),
        (
            "flows_max = 99999999999999999999",
            "8:13: guest \"web1\": flows_max 99999999999999999999 is not possible: use a number from 1 to 1048576",
        ),
        (
            "mtu = 575",
            "8:7: guest \"web1\": mtu 575 is not possible: use a number from 576 to 9000",
        ),
        (
            "mtu = 1966",
            "8:7: guest \"web1\": mtu 1966 does not fit a buffer of 2048 bytes: use an mtu of at most 1965, or buffer_size = 4096",
        ),
        (
            "adress = \"10.7.0.2/24\"",
            "8:1: guest \"web1\": unknown key \"adress\": did you mean \"addresses\"?",
        ),
        (
            "bridge = 3",
            "8:1: guest \"web1\": unknown key \"bridge\": the keys here are name, socket, mac, addresses, gateway, accept_ra, vlan, port, region, poll, worker, spoof_check, sources, rate_limit, flows_max, mtu",
        ),
    ] {
        refused(&guest(&[change]), &[&format!("web.toml:{message}")]);
    }
}

#[test]
fn ipv6_has_rules_of_its_own() {
    let both = "addresses = [\"10.7.0.2/24\", \"fd00:7::2/64\"]";
    for (changes, message) in [
        (
            [both, "mtu = 1279"],
            "8:7: guest \"web1\": mtu 1279 is too small for IPv6: use an mtu of at least 1280, or give no IPv6 address",
        ),
        (
            [both, "gateway = [\"10.7.0.1\", \"fd00:8::1\"]"],
            "6:24: guest \"web1\": gateway fd00:8::1 is not in fd00:7::2/64: use an address of that network",
        ),
        (
            [both, "gateway = \"fd00:7::2\""],
            "6:11: guest \"web1\": gateway fd00:7::2 is the guest's own address: use the router's",
        ),
    ] {
        refused(&guest(&changes), &[&format!("web.toml:{message}")]);
    }
    assert!(parse(&guest(&[both, "mtu = 1280", "gateway = \"fe80::1\""])).is_ok());
    let alone = ["addresses = [\"fd00:7::2/127\"]", "gateway = \"fd00:7::3\""];
    let config = parse(&guest(&alone)).unwrap();
    assert_eq!(config.guests[0].address(), "fd00:7::2".parse::<IpAddr>().unwrap());
}

#[test]
fn every_missing_key_is_named() {
    refused(
        "[[guest]]\n",
        &[
            "web.toml:1:1: guest 1: name is missing: write name = \"web1\"",
            "web.toml:1:1: guest 1: socket is missing: write socket = \"/run/pasted/web1.sock\"",
            "web.toml:1:1: guest 1: mac is missing: write mac = \"52:54:00:00:00:01\"",
            "web.toml:1:1: guest 1: addresses is missing: write addresses = [\"10.7.0.2/24\"], or \"guest\"",
            "web.toml:1:1: guest 1: port is missing: write port = \"tap:tap0\"",
        ],
    );
}

#[test]
fn the_top_level_is_judged() {
    for (text, message) in [
        ("", "1:1: guest is missing: write a [[guest]] table for each guest"),
        ("guest = []", "1:9: there is no guest: write a [[guest]] table for each guest"),
        ("[guest]", "1:1: guest is a table: write a [[guest]] table for each guest"),
        ("guest = [7]", "1:10: guest is an integer: write a [[guest]] table for each guest"),
    ] {
        refused(text, &[&format!("web.toml:{message}")]);
    }
    let with = |head: &str| format!("{head}\n{}", guest(&[]));
    refused(&with("[logs]"), &["web.toml:1:2: unknown key \"logs\": did you mean \"log\"?"]);
    refused(
        &with("[log]\nlevel = \"loud\""),
        &[
            "web.toml:2:9: log: level \"loud\" is unknown: use \"error\" or \"warn\" or \"info\" or \
           \"debug\" or \"trace\"",
        ],
    );
    refused(
        &with("stats = \"\""),
        &["web.toml:1:9: stats names no file: write stats = \"/run/pasted/stats.json\""],
    );
}

#[test]
fn workers_are_few_and_bound_or_not() {
    let with = |head: &str, change: &str| format!("{head}\n{}", guest(&[change]));
    let workers = |head: &str| parse(&with(head, "mtu = 1500")).unwrap().workers;
    assert_eq!(workers(""), None);
    assert_eq!(workers("workers = 2"), Some(Workers { count: 2, cpus: vec![] }));
    assert_eq!(workers("cpus = [3, 2]"), Some(Workers { count: 2, cpus: vec![3, 2] }));
    assert_eq!(workers("workers = 1\ncpus = [0]"), Some(Workers { count: 1, cpus: vec![0] }));
    let config = parse(&with("workers = 2", "worker = 1")).unwrap();
    assert_eq!(config.guests[0].workers, [1]);
    let config = parse(&with("workers = 2", "worker = [1, 0]")).unwrap();
    assert_eq!(config.guests[0].workers, [1, 0]);
    let limited = with("workers = 2", "worker = [1, 0]\nrate_limit = { tx_packets = 1 }");
    assert_eq!(parse(&limited).unwrap().guests[0].rate_limit.tx.packets, Some(1));
    assert!(parse(&guest(&[])).unwrap().guests[0].workers.is_empty());
    for (change, message) in [
        ("worker = []", "worker has 0 workers: give 1 to 8, or leave it out"),
        ("worker = \"x\"", "worker is a string: write worker = 0 or worker = [0, 1]"),
    ] {
        let said = format!("web.toml:9:10: guest \"web1\": {message}");
        refused(&with("workers = 2", change), &[&said]);
    }
    let piped = with("workers = 2", "worker = [0, 1]").replace("tap:tap0", "pipe:wire0");
    let said = "web.toml:9:10: guest \"web1\": several workers are not possible on a port of this \
                kind: give one";
    refused(&piped, &[said]);
    refused(
        &with("workers = 2", "worker = [1, 1]"),
        &["web.toml:9:14: guest \"web1\": worker 1 is given twice: one serves it no faster"],
    );
    let none = "mtu = 1500";
    for (head, change, message) in [
        ("workers = 0", none, "1:11: workers 0 is not possible: use a number from 1 to 64"),
        ("workers = 65", none, "1:11: workers 65 is not possible: use a number from 1 to 64"),
        ("cpus = 1", none, "1:8: cpus is an integer: write cpus = [2, 3]"),
        (
            "cpus = []",
            none,
            "1:8: cpus has 0 CPUs for 0 workers: give one for each, for 64 at most",
        ),
        ("cpus = [\"a\"]", none, "1:9: CPU is a string: write cpus = [2, 3]"),
        ("cpus = [1024]", none, "1:9: CPU 1024 is not possible: use a number from 0 to 1023"),
        (
            "cpus = [2, 2]",
            none,
            "1:12: CPU 2 is given twice: give every worker one of its own, or leave cpus out",
        ),
        (
            "workers = 3\ncpus = [0, 1]",
            none,
            "2:8: cpus has 2 CPUs for 3 workers: give one for each, for 64 at most",
        ),
        (
            "workers = 2",
            "worker = 2",
            "9:10: guest \"web1\": worker 2 is not there: use a number from 0 to 1",
        ),
        (
            "",
            "worker = 0",
            "9:10: guest \"web1\": worker is of no use where every guest has one of its own: say \
             how many workers there are, or leave it out",
        ),
    ] {
        refused(&with(head, change), &[&format!("web.toml:{message}")]);
    }
}

#[test]
fn guests_that_collide_are_named_both() {
    let region = "region = { size = \"64MiB\", path = \"/dev/shm/r\" }";
    let text = guest(&[region]) + &guest(&["name = \"web2\"", region]);
    refused(
        &text,
        &[
            "web.toml:11:10: guest \"web2\": socket is that of guest \"web1\" too: give every \
             guest a socket of its own",
            "web.toml:12:7: guest \"web2\": mac is that of guest \"web1\" too: give every guest \
             an address of its own",
            "web.toml:13:14: guest \"web2\": address is that of guest \"web1\" too: guests on one \
             port need addresses of their own",
            "web.toml:16:10: guest \"web2\": region path is a file of guest \"web1\" too: a \
             region belongs to one guest",
        ],
    );
    let two = |first: &str, second: &str| {
        let second = [
            "name = \"web2\"",
            "socket = \"/run/web2.sock\"",
            "mac = \"52:54:00:00:00:02\"",
            "port = \"tap:tap1\"",
            second,
        ];
        guest(&[first]) + &guest(&second)
    };
    let file = |keys: &str| format!("region = {{ size = \"64MiB\", {keys} }}");
    let text = two(&file("path = \"/srv/r\""), &file("mirror = \"/srv/r\""));
    refused(
        &text,
        &["web.toml:16:10: guest \"web2\": region mirror is a file of guest \"web1\" too: a \
           region belongs to one guest"],
    );
    assert!(parse(&two(&file("mirror = \"/srv/a\""), &file("mirror = \"/srv/b\""))).is_ok());

    let pmem = |path: &str| file(&format!("pmem_socket = \"{path}\""));
    let taken = "web.toml:16:10: guest \"web2\": pmem_socket is a socket of another device: give \
                 every device one of its own";
    refused(&two(&pmem("/run/p"), &pmem("/run/p")), &[taken]);
    refused(&two(&pmem("/run/p"), &pmem("/run/web1.sock")), &[taken]);
    refused(&two(&pmem("/run/p"), &pmem("/run/web2.sock")), &[taken]);
    assert!(parse(&two(&pmem("/run/p1"), &pmem("/run/p2"))).is_ok());
}

#[test]
fn a_name_twice_is_told_by_number() {
    let other =
        ["socket = \"/run/web2.sock\"", "mac = \"52:54:00:00:00:02\"", "port = \"tap:tap1\""];
    refused(
        &(guest(&[]) + &guest(&other)),
        &["web.toml:9:8: guest \"web1\": name is that of guest 1 too: give every guest a name of \
           its own"],
    );
}

#[test]
fn a_segment_is_for_a_guest_with_a_port_of_its_own() {
    let text = |other: &str, worker: &str| {
        format!(
            "control = \"/run/control.sock\"\nworkers = 1\n[[guest]]\nname = \"web1\"\n\
             mac = \"52:54:00:00:00:01\"\naddresses = [\"10.7.0.2/24\"]\nport = \"tap:tap0\"\n\
             region = {{ size = \"4MiB\", segment = true }}\n{worker}[[guest]]\nname = \"web2\"\n\
             mac = \"52:54:00:00:00:02\"\naddresses = [\"10.7.0.3/24\"]\nport = \"tap:{other}\"\n"
        )
    };
    let guests = parse(&text("tap1", "")).unwrap().guests;
    assert!(guests[0].region.segment && !guests[1].region.segment);
    for (text, why) in [
        (text("tap0", ""), "a port that another guest names: give it one of its own"),
        (text("tap1", "worker = 0\n"), "a worker: it has one of its own"),
    ] {
        let message =
            format!("web.toml:8:10: guest \"web1\": segment = true is not possible with {why}");
        refused(&text, &[&message]);
    }
}

#[test]
fn a_wire_has_two_ends() {
    let mut text = String::new();
    for n in 1..=3 {
        text += &guest(&[
            &format!("name = \"web{n}\""),
            &format!("socket = \"/run/web{n}.sock\""),
            &format!("mac = \"52:54:00:00:00:0{n}\""),
            &format!("addresses = [\"10.7.0.{}/24\"]", n + 1),
            &format!("port = \"pipe:wire0?seed={n}\""),
        ]);
        text = text.replace("gateway = \"10.7.0.1\"\n", "");
    }
    refused(
        &text,
        &["web.toml:18:8: guest \"web3\": port pipe:wire0 serves 2 guests only: name another \
           device"],
    );
    let two = &text[..text.rfind("[[guest]]").unwrap()];
    assert_eq!(parse(two).unwrap().guests.len(), 2);
}

#[test]
fn guests_name_a_device_or_queues_of_it() {
    let guests = |ports: &[&str]| {
        let mut text = String::new();
        for (n, port) in (1..).zip(ports) {
            text += &guest(&[
                &format!("name = \"web{n}\""),
                &format!("socket = \"/run/web{n}.sock\""),
                &format!("mac = \"52:54:00:00:00:0{n}\""),
                &format!("addresses = [\"10.7.0.{}/24\"]", n + 1),
                &format!("port = \"{port}\""),
            ]);
        }
        text.replace("gateway = \"10.7.0.1\"\n", "")
    };
    for ports in [
        ["xdp:eth1", "xdp:eth1", "xdp:eth1"],
        ["xdp:eth1@0", "xdp:eth1@1", "xdp:eth1@1?mode=driver"],
        ["netmap:ix0", "netmap:ix0", "netmap:ix1"],
        ["vale0:web", "vale0:web", "vale0:other"],
    ] {
        assert_eq!(parse(&guests(&ports)).unwrap().guests.len(), 3, "{ports:?}");
    }
    refused(
        &guests(&["xdp:eth1", "xdp:eth1@0"]),
        &[
            "web.toml:12:8: guest \"web2\": port xdp:eth1 is named with one of its queues, and with \
           all by guest \"web1\": name a queue for each, or none",
        ],
    );
    refused(
        &guests(&["xdp:eth1@0", "xdp:eth2", "xdp:eth1"]),
        &[
            "web.toml:18:8: guest \"web3\": port xdp:eth1 is named with all of its queues, and with \
           one by guest \"web1\": name a queue for each, or none",
        ],
    );
    // They are on one network all the same.
    let text = guests(&["xdp:eth1@0", "xdp:eth1@1"]).replace("10.7.0.3/24", "10.7.0.2/24");
    refused(
        &text,
        &["web.toml:11:14: guest \"web2\": address is that of guest \"web1\" too: guests on one \
           port need addresses of their own"],
    );
}

#[test]
fn all_errors_are_reported_in_the_order_of_the_file() {
    refused(
        &(guest(&["mtu = 1", "name = \"a_b\""]) + &guest(&["mac = \"x\""])),
        &[
            "web.toml:2:8: guest 1: name \"a_b\" is not possible: use 1 to 63 of a-z, 0-9 and -",
            "web.toml:8:7: guest 1: mtu 1 is not possible: use a number from 576 to 9000",
            "web.toml:11:10: guest \"web1\": socket is that of guest 1 too: give every guest a \
             socket of its own",
            "web.toml:12:7: guest \"web1\": mac \"x\" is no Ethernet address: write six pairs of \
             hexadecimal digits, as in 52:54:00:00:00:01",
            "web.toml:13:14: guest \"web1\": address is that of guest 1 too: guests on one port \
             need addresses of their own",
        ],
    );
}

#[test]
fn many_errors_are_cut_short() {
    let keys: String = (0..40).map(|n| format!("zzzzzzzz{n} = 1\n")).collect();
    let errors = parse(&(guest(&[]) + &keys)).unwrap_err();
    assert_eq!(errors.errors().len(), 32);
    assert!(errors.to_string().ends_with("\nweb.toml: and 8 more"), "{errors}");
}

#[test]
fn what_is_no_toml_is_named_with_its_place() {
    let errors = parse("[[guest]]\nname = \"web1\nmac = 7\n").unwrap_err();
    assert_eq!(errors.errors()[0].place, Some((2, 13)));
    let errors = parse(&guest(&["mtu = 1500\nmtu = 1500"])).unwrap_err();
    assert_eq!(errors.errors()[0].place, Some((9, 1)), "{errors}");
}

#[test]
fn too_many_guests_are_refused() {
    let text = guest(&[]).repeat(GUESTS_MAX + 1);
    refused(
        &text,
        &["web.toml:449:1: there are 65 guests: split them over several processes of at most 64"],
    );
}

#[test]
fn files_that_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.toml");
    let place = path.display();
    let said = |path: &Path| Config::load(path).unwrap_err().to_string();
    let message = format!("{place}: cannot be read: No such file or directory (os error 2)");
    assert_eq!(said(&path), message);
    std::fs::write(&path, b"log = 1\n# \xff\n").unwrap();
    assert_eq!(said(&path), format!("{place}:2:1: is not UTF-8: save it as UTF-8"));
    std::fs::write(&path, vec![b'#'; FILE_LEN_MAX as usize + 1]).unwrap();
    assert!(said(&path).contains("is longer than 1048576 bytes"));
    std::fs::write(&path, guest(&[])).unwrap();
    assert!(Config::load(&path).is_ok());
}

#[test]
fn guests_on_sockets_have_addresses_of_the_host_and_may_share_them() {
    for address in ["127.0.0.1/8", "0.0.0.0/32", "::1/128", "::/128"] {
        let guest = |number: u8| {
            format!(
                "[[guest]]\nname = \"web{number}\"\nsocket = \"/run/web{number}.sock\"\n\
                 mac = \"52:54:00:00:00:0{number}\"\naddresses = [\"{address}\"]\n\
                 port = \"sockets:\"\n"
            )
        };
        let config = parse(&(guest(1) + &guest(2))).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.guests.len(), 2, "{address}");
    }
}

#[test]
fn the_examples_are_right() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    for name in [
        "quickstart.toml",
        "durable.toml",
        "paste.toml",
        "sockets.toml",
        "vm.toml",
        "xdp.toml",
        "shared.toml",
        "paste.conf",
    ] {
        let config = Config::load(&configs.join(name)).unwrap();
        let guests = if name == "shared.toml" { 2 } else { 1 };
        assert_eq!(config.guests.len(), guests, "{name}");
    }
    let config = Config::load(&configs.join("bhyve.toml")).unwrap();
    assert_eq!((config.guests.len(), config.templates.len()), (0, 1));
    let wanted = Wanted { name: "web1", interface: Some("ix0"), mac: None, mtu: None };
    let made = config.with_guest(&wanted).unwrap();
    assert_eq!(made.guests[0].port.to_string(), "vale0:web1");
}

mod any_text {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the text, there is a verdict, and every place lies in it.
        #[test]
        fn is_judged_without_a_panic(text in "(\\[\\[?guest\\]?\\]|[a-z_]{1,8}|[= \n\"{}\\[\\],.:0-9é]){0,40}") {
            if let Err(errors) = parse(&text) {
                for error in errors.errors() {
                    let (line, _) = error.place.unwrap();
                    prop_assert!(line <= 1 + text.matches('\n').count());
                }
            }
        }

        /// A right configuration with one value replaced by any other.
        #[test]
        fn is_judged_in_every_place(at in 0..6usize, value in "(\"[ -~]{0,20}\"|-?[0-9]{1,25}|[0-9].[0-9]|true|\\[\\]|\\{\\})") {
            let key = RIGHT[at].split(" = ").next().unwrap();
            let _ = parse(&guest(&[&format!("{key} = {value}")]));
        }
    }
}
