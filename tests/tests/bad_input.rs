//! What the operator gets wrong: one clear line, an exit code, and nothing left
//! behind.

#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use paste_tests::backend::{Backend, Guest, Server, run_command, sockets_in, write_config};
use paste_tests::frontend::{RawGuest, Session};
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require;
use paste_tests::require::{Need, built};
use tempfile::TempDir;

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory can be made")
}

/// Runs a command that has to fail with this exit code, and returns what it
/// said, line by line.
fn fails(command: &mut Command, code: i32) -> Vec<String> {
    let mut process = Process::spawn("pasted", command);
    assert_eq!(process.wait().code(), Some(code), "the exit code");
    let output = process.output();
    output.lines().map(str::to_owned).collect()
}

/// Runs the configuration of these guests, which has to fail while it starts,
/// with one line that says all of `parts`. No socket may be left of theirs.
fn refused(net: &Namespace, dir: &Path, guests: &[Guest], parts: &[&str]) {
    let before = sockets_in(dir);
    let config = write_config(dir, guests);
    let lines = fails(run_command(net, &config).args(["--log", "error"]), 1);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].starts_with("pasted: "), "{lines:#?}");
    for part in parts {
        assert!(lines[0].contains(part), "\"{part}\" is not in {:?}", lines[0]);
    }
    assert_eq!(sockets_in(dir), before, "sockets left behind");
}

/// A guest on tap1 whose region is a file.
fn with_region(name: &str, path: &Path) -> Guest {
    let region = format!("region = {{ size = \"16MiB\", path = \"{}\" }}\n", path.display());
    Guest { name: name.to_owned(), more: region, ..Guest::number(1) }
}

#[test]
fn a_wrong_configuration_is_told_by_file_and_line() {
    require!(Need::Built("pasted"));
    let dir = directory();
    let guest = Guest { mac: "no address".to_owned(), ..Guest::number(1) };
    let path = write_config(dir.path(), &[guest, Guest::number(2)]);
    let text = fs::read_to_string(&path).expect("it was just written");
    let text = text.replace("tap:tap2", "tap:").replace("web2\"", "web2\"\ncolour = 1");
    fs::write(&path, &text).expect("a file can be written");
    let line_of = |part: &str| {
        let index = text.lines().position(|line| line.contains(part)).expect("it is there");
        format!("{}:{}:", path.display(), index + 1)
    };
    let expected = ["no address", "colour", "\"tap:\""].map(line_of);
    for command in ["run", "check"] {
        let lines = fails(Command::new(built("pasted")).args([command, "--config"]).arg(&path), 2);
        assert_eq!(lines.len(), expected.len(), "{lines:#?}");
        for (line, start) in lines.iter().zip(&expected) {
            assert!(line.starts_with(start), "{line:?} does not begin with {start:?}");
        }
    }
    assert!(sockets_in(dir.path()).is_empty(), "something was started");
}

#[test]
fn a_configuration_that_is_none_is_refused() {
    require!(Need::Built("pasted"));
    let dir = directory();
    let path = dir.path().join("pasted.toml");
    let run =
        |path: &Path| fails(Command::new(built("pasted")).args(["run", "--config"]).arg(path), 2);
    let lines = run(&path);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].starts_with(&format!("{}: cannot be read", path.display())), "{lines:#?}");
    for bytes in [&b""[..], b"[[guest", b"\xff\xfe", b"guest = 3", &[b'['; 100_000]] {
        fs::write(&path, bytes).expect("a file can be written");
        let lines = run(&path);
        let start = path.display().to_string();
        assert!(
            !lines.is_empty() && lines.iter().all(|line| line.starts_with(&start)),
            "{lines:#?}"
        );
    }
}

#[test]
fn a_socket_in_use_is_left_alone_and_a_stale_one_replaced() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let net = Namespace::new();
    for tap in ["tap1", "tap2"] {
        net.tap(tap);
    }
    let first = Guest::number(1);
    let backend = Backend::start(&net, std::slice::from_ref(&first));
    // The same socket, for another device.
    let second = Guest { tap: "tap2".to_owned(), ..first.clone() };
    let guests = std::slice::from_ref(&second);
    refused(&net, backend.dir(), guests, &["web1.sock", "another process listens"]);
    // As soon as it has noticed that who looked whether it is there has gone.
    RawGuest::attach_soon(&backend.socket(&first));

    let dir = backend.crash();
    assert_eq!(sockets_in(dir.path()).len(), 1, "a crash leaves the socket");
    let backend = Backend::start_in(dir, &net, std::slice::from_ref(&first));
    RawGuest::attach(&backend.socket(&first)).expect("the next one serves");
    backend.stop();
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let net = Namespace::new();
    net.tap("tap1");
    let dir = directory();
    let path = dir.path().join("web1.sock");
    fs::write(&path, "precious").expect("a file can be written");
    refused(&net, dir.path(), &[Guest::number(1)], &["web1.sock", "not a socket"]);
    assert_eq!(fs::read(&path).expect("it is still there"), b"precious");
}

#[test]
fn a_device_that_cannot_be_had_is_named() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let net = Namespace::new();
    net.tap("tap1");
    net.tap("tap2");
    net.bridge("br0");
    net.ip("tuntap add dev tun0 mode tun");
    let busy = Guest::number(1);
    let backend = Backend::start(&net, std::slice::from_ref(&busy));
    let dir = directory();
    let on = |tap: &str| Guest { tap: tap.to_owned(), ..Guest::number(2) };
    refused(&net, dir.path(), &[on("tap1")], &["tap:tap1", "another process has it"]);
    refused(&net, dir.path(), &[on("br0")], &["tap:br0", "no TAP device"]);
    refused(&net, dir.path(), &[on("tun0")], &["tap:tun0", "no TAP device"]);
    // What was opened for the first guest is closed again.
    let both = [on("tap2"), Guest { tap: "tap1".to_owned(), ..Guest::number(3) }];
    refused(&net, dir.path(), &both, &["web3", "tap:tap1"]);
    // A region that was made for nothing goes as well.
    let region = dir.path().join("new.region");
    let made = Guest { tap: "br0".to_owned(), ..with_region("web2", &region) };
    refused(&net, dir.path(), &[made], &["tap:br0"]);
    assert!(!region.exists(), "a region was left behind");

    net.ip("link set dev tap2 mtu 1280");
    refused(&net, dir.path(), &[on("tap2")], &["tap:tap2", "1280"]);
    RawGuest::attach(&backend.socket(&busy)).expect("the first still serves");
}

#[test]
fn a_nic_whose_module_is_absent_is_left_alone() {
    require!(Need::Namespaces, Need::Built("pasted"));
    if Path::new("/dev/netmap").exists() {
        return eprintln!("skipped: this host has netmap");
    }
    let net = Namespace::new();
    net.tap("tap1");
    let dir = directory();
    for (kind, extra, part) in [
        ("netmap", "", "netmap module not loaded"),
        ("paste", "", "netmap module not loaded"),
        ("paste", "vlan = 7\n", "PASTE knows no VLANs"),
    ] {
        let guest = Guest { more: extra.to_owned(), ..Guest::number(1) };
        let path = write_config(dir.path(), &[guest]);
        let text = fs::read_to_string(&path).expect("it was just written");
        let port = format!("{kind}:tap1");
        fs::write(&path, text.replace("tap:tap1", &port)).expect("a file can be written");
        let lines = fails(run_command(&net, &path).args(["--log", "error"]), 1);
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].contains(&port) && lines[0].contains(part), "{lines:#?}");
        assert!(sockets_in(dir.path()).is_empty(), "a socket was left behind");
    }
}

#[test]
fn without_permission_no_device_is_made() {
    require!(Need::Namespaces, Need::Built("pasted"), Need::Program("setpriv"));
    let net = Namespace::new();
    let dir = directory();
    let everybody = fs::Permissions::from_mode(0o777);
    fs::set_permissions(dir.path(), everybody).expect("ours");
    // The target directory may be out of that user's reach.
    let program = dir.path().join("pasted");
    fs::copy(built("pasted"), &program).expect("a program can be copied");
    let config = write_config(dir.path(), &[Guest::number(1)]);
    let mut command = net.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    let lines = fails(command.args(["run", "--log", "error", "--config"]).arg(config), 1);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("tap:tap1: permission denied"), "{lines:#?}");
    assert!(sockets_in(dir.path()).is_empty(), "a socket was left behind");
}

#[test]
fn a_region_that_cannot_be_had_is_named() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let net = Namespace::new();
    net.tap("tap1");
    net.tap("tap2");
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    let refuse = |guest: Guest, parts: &[&str]| refused(&net, dir.path(), &[guest], parts);

    refuse(with_region("web1", &at("missing/a.region")), &["missing/a.region", "no such file"]);
    assert!(!at("missing").exists());

    let noise: Vec<u8> = (0..16u32 << 20).map(|at| ((at * 31) >> 3) as u8).collect();
    fs::write(at("noise.region"), &noise).expect("a file can be written");
    refuse(with_region("web1", &at("noise.region")), &["noise.region", "not a region"]);
    assert!(fs::read(at("noise.region")).expect("it is still there") == noise, "it was changed");

    fs::create_dir(at("directory.region")).expect("a directory can be made");
    refuse(
        with_region("web1", &at("directory.region")),
        &["directory.region", "not a regular file"],
    );

    // A good one, made by a run that was stopped in good order.
    let path = at("good.region");
    let guest = with_region("web1", &path);
    let backend = Backend::start(&net, std::slice::from_ref(&guest));
    let other = Guest { tap: "tap2".to_owned(), ..guest.clone() };
    refuse(other, &["good.region", "in use by another process"]);
    backend.stop();
    refuse(with_region("web2", &path), &["good.region", "belongs to guest \"web1\""]);
    let smaller = Guest { more: guest.more.replace("16MiB", "8MiB"), ..guest.clone() };
    refuse(smaller, &["good.region", "bytes"]);

    // Both superblocks damaged: one is repaired, two are an end.
    let mut bytes = fs::read(&path).expect("a region");
    let [first, second] = paste_abi::superblock::COPY_OFFSETS.map(|at| at as usize);
    bytes[first + 100] ^= 1;
    fs::write(&path, &bytes).expect("a file can be written");
    Backend::start(&net, std::slice::from_ref(&guest)).stop();
    let mut bytes = fs::read(&path).expect("a region");
    bytes[first + 100] ^= 1;
    bytes[second + 100] ^= 1;
    fs::write(&path, &bytes).expect("a file can be written");
    refuse(guest.clone(), &["good.region", "both copies of its superblock are damaged"]);

    fs::write(&path, &bytes[..bytes.len() / 2]).expect("a file can be written");
    let config = write_config(dir.path(), &[guest]);
    let lines = fails(run_command(&net, &config).args(["--log", "error"]), 1);
    assert_eq!(lines.len(), 1, "{lines:#?}");
}

#[test]
fn a_second_front_end_is_refused() {
    require!(Need::Namespaces, Need::Built("pasted"));
    let net = Namespace::new();
    net.tap("tap1");
    let guest = Guest::number(1);
    let backend = Backend::start(&net, std::slice::from_ref(&guest));
    let socket = backend.socket(&guest);
    let mut first = RawGuest::attach(&socket).expect("it attaches");
    first.open(0, 8);
    for _ in 0..20 {
        let second = Session::connect(&socket).expect("a connection");
        assert!(second.is_closed(), "a second front end was let in");
    }
    first.listen(0, 80);
    drop(first);
    RawGuest::attach(&socket).expect("the next one attaches");
    let stats = backend.stop();
    assert_eq!(stats.get(&guest, "device.sessions"), 2);
}

#[test]
fn it_stops_in_good_order_with_a_guest_under_way() {
    require!(Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http"));
    let server = Server::start(&[]);
    let guest = server.guest.clone();
    let mut application = server.application;
    // Checks the exit code and what is left behind.
    server.backend.stop().assert_no_buffer_missing(&guest);
    // The application waits for the next backend.
    assert!(application.is_alive(), "the application ended with the backend");
}
