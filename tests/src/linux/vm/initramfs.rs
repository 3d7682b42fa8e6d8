//! The file system that a machine boots from, in RAM: busybox, drivers, programs
//! and what they are linked with, as an archive that the kernel unpacks (its
//! `Documentation/driver-api/early-userspace/buffer-format.rst`: cpio, "newc").

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What makes devices of virtio-pmem appear, and the network device.
const DRIVERS: [&str; 6] =
    ["virtio_pci", "virtio_pmem", "nd_pmem", "dax_pmem", "device_dax", "virtio_net"];

/// Waits for no device: what a test needs it waits for.
const INIT: &str = "\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
export PATH=/bin
ip link set dev lo up
while read -r driver; do insmod /drivers/$driver; done </drivers/order
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty -echo -onlcr
echo '[vm] ready'
while read -r line; do
    sh -c \"$line\" >/tmp/said 2>&1 </dev/null
    status=$?
    cat /tmp/said
    echo \"[vm] exit $status\"
done
";

/// What udhcpc does with what it is told.
const DHCP: &str = "\
#!/bin/sh
[ $1 = bound ] && ip address add $ip/$mask dev $interface
exit 0
";

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Writes the archive to `path`.
pub(super) fn build(path: &Path, modules: &Path, programs: &[PathBuf], drivers: &[&str]) {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp", "drivers"] {
        archive.add(dir, DIRECTORY, &[]);
    }
    archive.add("init", PROGRAM, INIT.as_bytes());
    let busybox = PathBuf::from("/bin/busybox");
    for program in [&busybox].into_iter().chain(programs) {
        let name = program.file_name().expect("a program has a name").to_string_lossy();
        archive.add_file(&format!("bin/{name}"), program);
        for library in libraries(program) {
            archive.add_file(library.to_string_lossy().trim_start_matches('/'), &library);
        }
    }
    let mut order = Vec::new();
    for driver in DRIVERS.iter().chain(drivers) {
        add_driver(driver, modules, &mut order);
    }
    let mut names = String::new();
    for driver in order {
        let name = driver.file_name().expect("a driver has a name").to_string_lossy();
        archive.add_file(&format!("drivers/{name}"), &driver);
        names.push_str(&format!("{name}\n"));
    }
    archive.add("drivers/order", PROGRAM, names.as_bytes());
    archive.add("etc/dhcp", PROGRAM, DHCP.as_bytes());
    archive.add("TRAILER!!!", 0, &[]);
    fs::write(path, archive.bytes).expect("a file can be written");
}

/// Adds a driver after those that it needs.
fn add_driver(name: &str, modules: &Path, order: &mut Vec<PathBuf>) {
    let path = find(modules, &format!("{name}.ko"))
        .unwrap_or_else(|| panic!("the kernel's package has no {name}.ko"));
    if order.contains(&path) {
        return;
    }
    let bytes = fs::read(&path).expect("a file of the package");
    for needed in needs(&bytes) {
        add_driver(&needed, modules, order);
    }
    order.push(path);
}

/// The drivers that a driver names in its `.modinfo` section.
fn needs(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let rest = &module[at + key.len()..];
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
    let names = String::from_utf8_lossy(&rest[..end]).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        let found = match path.is_dir() {
            true => find(&path, name),
            false => path.ends_with(name).then_some(path),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// What the program is linked with, by the paths that it will be looked for at.
fn libraries(program: &Path) -> Vec<PathBuf> {
    // Says so and fails for a program that is linked with nothing.
    let output = Command::new("ldd").arg(program).output().expect("ldd runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// A cpio archive in memory.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    fn add_file(&mut self, name: &str, from: &Path) {
        let bytes = fs::read(from).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        self.add(name, PROGRAM, &bytes);
    }

    /// Adds an entry and the directories above it, unless it is there.
    fn add(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        if !self.names.insert(name.to_owned()) {
            return;
        }
        if let Some((above, _)) = name.rsplit_once('/') {
            self.add(above, DIRECTORY, &[]);
        }
        let inode = self.names.len() as u32;
        let (links, size, name_len) = (1, bytes.len() as u32, name.len() as u32 + 1);
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_len, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
