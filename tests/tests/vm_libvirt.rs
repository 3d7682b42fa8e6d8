//! `pasted args libvirt`: libvirt takes what is printed, and starts a machine whose kernel
//! has its network and whose application serves, over a restart of the backend too; and one
//! that listens for the backend, and is shown no region. The daemon is one of the test's own,
//! of an unprivileged user, as QEMU is under libvirt.

#![cfg(target_os = "linux")]

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use paste_tests::backend::{Backend, FIXED_BODY, Guest};
use paste_tests::client;
use paste_tests::netns::Namespace;
use paste_tests::process::Process;
use paste_tests::require::{Need, built, program};
use paste_tests::vm::{Boot, Setup, Vm};
use paste_tests::{require, wait};
use tempfile::TempDir;

const NEEDS: [Need; 9] = [
    Need::Namespaces,
    Need::Built("pasted"),
    Need::Built("examples/http"),
    Need::Program("qemu-system-x86_64"),
    Need::Program("libvirtd"),
    Need::Program("virsh"),
    Need::Program("xmllint"),
    Need::Program("setpriv"),
    Need::GuestKernel,
];

/// The kernel's own address, and the clients'.
const OWN: &str = "10.7.0.77";
const NEAR: &str = "10.7.0.1";
/// The user `nobody`, whose machines they are; the group stays that of the sockets.
const USER: u32 = 65_534;
/// What begins the part of the XML that belongs among the devices.
const DEVICES: &str = "<!-- In <devices>: -->\n";
/// The first libvirt that starts a machine with virtio-pmem, by its source.
const WITH_PMEM: [u32; 2] = [9, 4];
/// How long the daemon may take to find out what QEMU can.
const LIMIT: Duration = Duration::from_secs(120);

/// libvirt's daemon, which ends with this, and the directory of all its files.
struct Libvirt {
    _daemon: Process,
    home: TempDir,
}

impl Libvirt {
    fn start() -> Libvirt {
        let home = tempfile::tempdir().expect("a directory");
        for dir in ["run", "config", "config/libvirt", "cache", "data"] {
            std::fs::create_dir(home.path().join(dir)).expect("a directory can be made");
            own(&home.path().join(dir));
        }
        own(home.path());
        // There is no daemon for logs.
        let options = home.path().join("config/libvirt/qemu.conf");
        std::fs::write(options, "stdio_handler = \"file\"\n").expect("a file");
        let daemon = Process::spawn("libvirtd", &mut as_user(home.path(), "libvirtd"));
        let libvirt = Libvirt { _daemon: daemon, home };
        wait::until_for(LIMIT, "libvirt knows QEMU", || libvirt.virsh(&["version"]).ok());
        libvirt
    }

    /// What virsh says to these words, or fails with.
    fn virsh(&self, words: &[&str]) -> Result<String, String> {
        let mut command = as_user(self.home.path(), "virsh");
        let output = command.args(["-c", "qemu:///session"]).args(words).output();
        let output = output.expect("virsh runs");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(said(&output.stdout)),
            false => Err(said(&output.stderr)),
        }
    }

    /// Whether this libvirt starts machines with virtio-pmem.
    fn has_pmem(&self) -> bool {
        let said = self.virsh(&["--version"]).expect("a version");
        let mut numbers = said.trim().split('.').map_while(|number| number.parse::<u32>().ok());
        [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)] >= WITH_PMEM
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // The machine is no child of the daemon's, and outlives it.
        for name in ["web1", "web2"] {
            let pid = self.home.path().join(format!("run/libvirt/qemu/run/{name}.pid"));
            let pid = std::fs::read_to_string(pid).ok().and_then(|text| text.trim().parse().ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// A program of libvirt's, for this user and with these files alone.
fn as_user(home: &Path, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={USER}"), "--clear-groups", program]);
    command.env("HOME", home).env("LIBVIRT_AUTOSTART", "0").env_remove("LIBVIRT_DEFAULT_URI");
    for (variable, dir) in [
        ("XDG_RUNTIME_DIR", "run"),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_DATA_HOME", "data"),
    ] {
        command.env(variable, home.join(dir));
    }
    command
}

/// Gives a file to the user.
fn own(path: &Path) {
    chown(path, Some(USER), None).expect("a file of the test's own");
}

/// What `pasted args libvirt` prints for the guest: for the domain, and for its devices.
fn print(backend: &Backend, guest: &Guest) -> (String, String) {
    let mut command = Command::new(built("pasted"));
    command.args(["args", "libvirt", &guest.name, "--memory", "512MiB", "--config"]);
    command.arg(backend.dir().join("pasted.toml"));
    let output = command.output().expect("pasted runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let (domain, devices) = text.split_once(DEVICES).expect("both parts");
    (domain.to_owned(), devices.to_owned())
}

/// The same devices, with what the comment has in the place of virtio-pmem.
fn without_pmem(devices: &str) -> String {
    let (kept, rest) = devices.split_once("<memory model=").expect("a region");
    let (_, rest) = rest.split_once("<shmem").expect("another way");
    let (shmem, _) = rest.split_once("</shmem>").expect("its end");
    format!("{kept}<shmem{shmem}</shmem>\n")
}

/// A domain's XML with these parts, which libvirt's schemas know, in a file of this
/// directory.
fn write_domain(dir: &Path, name: &str, [domain, os, devices]: [&str; 3]) -> PathBuf {
    let emulator = program("qemu-system-x86_64").expect("the test needs it");
    let text = format!(
        "<domain type='qemu'>\n<name>{name}</name>\n{domain}<vcpu>2</vcpu>\n\
         <os>\n<type arch='x86_64' machine='q35'>hvm</type>\n{os}</os>\n\
         <features><acpi/><apic/></features>\n\
         <devices>\n<emulator>{}</emulator>\n{devices}</devices>\n</domain>\n",
        emulator.display()
    );
    let path = dir.join("domain.xml");
    std::fs::write(&path, &text).expect("a file");
    let output = Command::new("virt-xml-validate").arg(&path).arg("domain").output();
    let output = output.expect("virt-xml-validate runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{text}");
    path
}

/// Has libvirt boot the machine, which has these ports besides.
fn create(libvirt: &Libvirt, dir: &Path, boot: &Boot, domain: &str, devices: &str) {
    for extension in ["in", "out"] {
        own(&boot.shell.with_extension(extension));
    }
    // Without MSI-X: QEMU 7.2, emulating, crashes when a device that is served by another
    // process uses it.
    let os = format!(
        "<kernel>{}</kernel>\n<initrd>{}</initrd>\n<cmdline>{} pci=nomsi</cmdline>\n",
        boot.image.display(),
        boot.initramfs.display(),
        boot.command_line
    );
    let devices = format!(
        "{devices}<serial type='file'><source path='{}'/><target port='0'/></serial>\n\
         <serial type='pipe'><source path='{}'/><target port='1'/></serial>\n",
        boot.console.display(),
        boot.shell.display()
    );
    let path = write_domain(dir, "web1", [domain, &os, &devices]);
    let path = path.to_str().expect("a plain path");
    libvirt.virsh(&["create", "--validate", path]).expect("a machine starts");
}

#[test]
fn libvirt_starts_a_machine_by_what_is_printed() {
    for need in NEEDS {
        require!(need);
    }
    let net = Namespace::new();
    let region = tempfile::Builder::new().suffix(".region").tempfile_in("/dev/shm");
    let region = region.expect("memory").into_temp_path();
    // The backend makes it, and the path's end removes it.
    std::fs::remove_file(&region).expect("a file");
    let guests = [
        Guest {
            more: format!(
                "sources = \"any\"\nregion = {{ size = \"32MiB\", path = \"{}\" }}\n",
                region.display()
            ),
            ..Guest::number(1)
        },
        Guest { connects: true, ..Guest::apart(2) },
    ];
    for guest in &guests {
        net.tap_with(&guest.tap, &guest.near_address());
    }
    let dir = tempfile::tempdir().expect("a directory");
    // Open to the group, as the sockets in it are.
    let group = std::fs::Permissions::from_mode(0o770);
    std::fs::set_permissions(dir.path(), group).expect("a directory of the test's own");
    let mut backend = Backend::start_in(dir, &net, &guests);
    own(&region);
    let libvirt = Libvirt::start();
    let (domain, devices) = print(&backend, &guests[0]);
    // With an instruction for randomness, for which the machine's kernel would else wait long.
    let domain = domain.replace("<cpu>", "<cpu mode='maximum'>");
    let pmem = libvirt.has_pmem();
    let (devices, shown) = match pmem {
        true => (devices, "/dev/dax0.0"),
        false => (without_pmem(&devices), "pci"),
    };
    let setup = Setup { programs: vec!["examples/http"], ..Setup::default() };
    let machine = tempfile::tempdir().expect("a directory");
    own(machine.path());
    let files = machine.path().to_owned();
    let mut vm = Vm::boot_by(&setup, machine, |boot| {
        create(&libvirt, &files, boot, &domain, &devices);
    });
    if pmem {
        vm.run("until (: </dev/dax0.0) 2>/dev/null; do sleep 0.1; done");
    }
    vm.run(&format!("ip link set eth0 up; ip address add {OWN}/24 dev eth0"));
    vm.run(&format!("ping -c 2 -W 20 {NEAR}"));
    vm.run(&format!("http --interface eth0 --region {shown} >/dev/ttyS0 2>&1 & true"));
    let serves = || {
        net.run(|| {
            let response = wait::until("the application answers", || {
                client::get_once(guests[0].ip(), "/").ok()
            });
            assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
        });
    };
    serves();

    // The machine comes back to another backend.
    let dir = backend.crash();
    backend = Backend::start_in(dir, &net, &guests);
    vm.run(&format!("until ping -c 1 -W 1 {NEAR}; do :; done"));
    serves();

    libvirt.virsh(&["destroy", "web1"]).expect("the machine ends");

    // The other one listens, and is not let begin: its firmware finds nothing to boot.
    let (domain, devices) = print(&backend, &guests[1]);
    let path = write_domain(libvirt.home.path(), "web2", [&domain, "", &devices]);
    let path = path.to_str().expect("a plain path");
    libvirt.virsh(&["create", "--validate", "--paused", path]).expect("a machine starts");
    backend.process.wait_output("guest{name=web2}: front end attached");
    libvirt.virsh(&["destroy", "web2"]).expect("the machine ends");
    for name in ["web1", "web2"] {
        backend.process.wait_output(&format!("guest{{name={name}}}: front end detached"));
    }
    backend.stop();
}
