//! Whole virtual machines: QEMU with Debian's kernel, emulated, so for what
//! works and never for how fast.
//!
//! A machine has regions as virtio-pmem devices and may have a network device
//! that a backend serves. It boots into a shell that takes commands from the
//! second serial port and says how they ended; the kernel's messages go to the
//! first. The programs in it are this workspace's own.

mod initramfs;
mod monitor;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use self::monitor::Monitor;
use crate::backend::{Backend, Guest};
use crate::process::Process;
use crate::require::{built, is_all_required, program};
use crate::wait;

/// How long a machine may take to boot, or a command in it, on a busy host.
const LIMIT: Duration = Duration::from_secs(180);
/// What the kernel is told.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1";
/// Bytes of a machine's memory.
const MEMORY: &str = "1G";

/// Where `tests/run` unpacks the kernel's package.
pub fn kernel_dir() -> PathBuf {
    built("../vm-kernel")
}

/// The kernel and the directory of its modules, if they are there.
pub fn kernel() -> Option<(PathBuf, PathBuf)> {
    let dir = kernel_dir();
    let image = only_entry(&dir.join("boot"), "vmlinuz-")?;
    let modules = only_entry(&dir.join("lib/modules"), "")?;
    Some((image, modules))
}

/// A program of this workspace, linked with nothing as it is given to machines.
///
/// # Panics
/// If there is only the one that is linked with the host's libraries, and all is
/// required.
fn for_machine(name: &str) -> PathBuf {
    let fixed = built(&format!("../x86_64-unknown-linux-gnu/release/{name}"));
    if fixed.exists() {
        return fixed;
    }
    let is_example = name.starts_with("examples/");
    assert!(!(is_example && is_all_required()), "tests/run builds {}", fixed.display());
    built(name)
}

fn only_entry(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .next()
}

/// How a machine's network device finds the backend that serves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// The machine connects when it starts.
    #[default]
    Once,
    /// The machine connects, and again when the backend was gone.
    Again,
    /// The machine listens.
    Listen,
}

/// A network device of a machine: `eth0` is the first one.
#[derive(Clone, Debug, Default)]
pub struct Nic {
    /// The socket.
    pub socket: PathBuf,
    /// Its Ethernet address.
    pub mac: String,
    /// Who listens at the socket.
    pub attach: Attach,
    /// The MTU that the machine is told of.
    pub mtu: Option<u16>,
    /// Its queue pairs, where it has several.
    pub pairs: Option<u8>,
}

impl Nic {
    fn describe(&self, index: usize, qemu: &mut Command) {
        let options = match self.attach {
            Attach::Once => "",
            Attach::Again => ",reconnect=1",
            Attach::Listen => ",server=on",
        };
        let path = self.socket.display();
        qemu.arg("-chardev").arg(format!("socket,id=char{index},path={path}{options}"));
        let (queues, multiqueue) = match self.pairs {
            Some(pairs) => (format!(",queues={pairs}"), ",mq=on"),
            None => (String::new(), ""),
        };
        let netdev = format!("vhost-user,id=net{index},chardev=char{index}{queues}");
        qemu.args(["-netdev", &netdev]);
        // Each in a slot of its own, which it can be taken out of.
        let port = format!("pcie-root-port,id=port{index},chassis={},slot=1", index + 1);
        qemu.args(["-device", &port]);
        let mtu = self.mtu.map_or(String::new(), |mtu| format!(",host_mtu={mtu}"));
        // Without MSI-X: QEMU 7.2, emulating, crashes when a device that is served by
        // another process uses it.
        qemu.arg("-device").arg(format!(
            "virtio-net-pci,id=nic{index},netdev=net{index},mac={},vectors=0,bus=port{index}{mtu}\
             {multiqueue}",
            self.mac
        ));
    }

    /// The device of this guest of a backend.
    pub fn of(backend: &Backend, guest: &Guest) -> Nic {
        Nic { socket: backend.socket(guest), mac: guest.mac.clone(), ..Nic::default() }
    }
}

/// What a machine is made of.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Programs of this workspace, as for [`built`]; each is found by its last name, and
    /// linked with nothing if it was built so.
    pub programs: Vec<&'static str>,
    /// Programs that lie elsewhere.
    pub files: Vec<PathBuf>,
    /// Programs of the host.
    pub tools: Vec<&'static str>,
    /// Further drivers of the kernel.
    pub drivers: Vec<&'static str>,
    /// Files of regions: the first is `/dev/dax0.0` in the machine.
    pub regions: Vec<PathBuf>,
    /// Files of regions that ivshmem devices show, each of a power of two of bytes.
    pub shown: Vec<PathBuf>,
    /// Its network devices.
    pub nics: Vec<Nic>,
    /// Its processors, where it has several.
    pub cpus: Option<u8>,
    /// It has its kernel and what that boots from as files of its own, and the program that
    /// boots them: see [`Vm::kexec`].
    pub kexec: bool,
    /// It boots again when it is reset; without, it ends.
    pub reboots: bool,
    /// Its memory is its own: what a backend maps of it is something else.
    pub private_memory: bool,
}

/// What another program than QEMU alone is given to boot a machine with.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The kernel.
    pub image: PathBuf,
    /// What it begins with.
    pub initramfs: PathBuf,
    /// What it is told.
    pub command_line: &'static str,
    /// The file for what the first serial port says.
    pub console: PathBuf,
    /// The pipes that the second one is, with `.in` and `.out` behind it.
    pub shell: PathBuf,
}

/// A machine that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Vm {
    process: Process,
    monitor: Option<Monitor>,
    /// Bytes of its output that earlier commands have said.
    seen: usize,
    dir: TempDir,
}

impl Vm {
    /// Boots a machine, and waits until it takes commands.
    pub fn boot(setup: &Setup) -> Vm {
        let mut vm = Vm::start(setup);
        vm.wait_ready();
        vm
    }

    /// Boots a machine that another program starts, in this directory, and waits until it
    /// takes commands. Of what it is made of, devices and memory are that program's business.
    pub fn boot_by(setup: &Setup, dir: TempDir, start: impl FnOnce(&Boot)) -> Vm {
        let (image, initramfs) = Vm::unpack(setup, dir.path());
        let boot = Boot {
            // Beside what else it boots from: not every user may read the original.
            image: dir.path().join("vmlinuz"),
            initramfs,
            command_line: COMMAND_LINE,
            console: dir.path().join("console"),
            shell: dir.path().join("shell"),
        };
        std::fs::copy(&image, &boot.image).expect("a file can be copied");
        let mut shell = Command::new("sh");
        shell.args([
            "-c",
            "exec 3<&0; mkfifo \"$0.in\" \"$0.out\"; cat <&3 >\"$0.in\" & exec cat \"$0.out\"",
        ]);
        let process = Process::spawn("the machine", shell.arg(&boot.shell));
        let out = boot.shell.with_extension("out");
        wait::until("there are pipes", || out.exists().then_some(()));
        start(&boot);
        let mut vm = Vm { process, monitor: None, seen: 0, dir };
        vm.wait_ready();
        vm
    }

    /// Makes what a machine boots from: the kernel, where its package has it, and the files
    /// that it begins with.
    fn unpack(setup: &Setup, dir: &Path) -> (PathBuf, PathBuf) {
        let (image, modules) = kernel().expect("the test has asked for it");
        let initramfs = dir.join("initramfs");
        let tools = setup.tools.iter().map(|name| program(name).expect("the test needs it"));
        let programs: Vec<PathBuf> =
            setup.programs.iter().map(|name| for_machine(name)).chain(tools).collect();
        let mut programs = [programs, setup.files.clone()].concat();
        if setup.kexec {
            let next = ["vmlinuz", "initramfs", "kexec"].map(|name| dir.join("next").join(name));
            std::fs::create_dir(dir.join("next")).expect("a directory can be made");
            std::fs::copy(&image, &next[0]).expect("a file can be copied");
            initramfs::build(&next[1], &modules, &programs, &setup.drivers);
            crate::c::compile_alone("tests/c/kexec.c", &next[2]);
            programs.extend(next);
        }
        initramfs::build(&initramfs, &modules, &programs, &setup.drivers);
        (image, initramfs)
    }

    /// Starts a machine.
    pub fn start(setup: &Setup) -> Vm {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let (image, initramfs) = Vm::unpack(setup, dir.path());
        // What QEMU says itself is kept apart from what the machine says.
        let mut qemu = Command::new("sh");
        qemu.args(["-c", "exec qemu-system-x86_64 \"$@\" 2>$0"]).arg(dir.path().join("qemu"));
        qemu.args(["-nodefaults", "-display", "none", "-M", "q35", "-cpu", "max"]);
        if !setup.reboots {
            qemu.arg("-no-reboot");
        }
        if let Some(cpus) = setup.cpus {
            qemu.args(["-smp", &cpus.to_string()]);
        }
        qemu.args(["-accel", "tcg,thread=multi", "-m", &format!("{MEMORY},slots=2,maxmem=4G")]);
        // Memory that a backend can map.
        let share = if setup.private_memory { "off" } else { "on" };
        let memory = format!("memory-backend-memfd,id=ram,size={MEMORY},share={share}");
        qemu.args(["-object", &memory]);
        qemu.args(["-numa", "node,memdev=ram"]);
        for (index, region) in setup.regions.iter().enumerate() {
            let len = region.metadata().expect("the region is there").len();
            qemu.arg("-object").arg(format!(
                "memory-backend-file,id=pm{index},mem-path={},size={len},share=on",
                region.display()
            ));
            qemu.args(["-device", &format!("virtio-pmem-pci,memdev=pm{index}")]);
        }
        for (index, region) in setup.shown.iter().enumerate() {
            let len = region.metadata().expect("the region is there").len();
            qemu.arg("-object").arg(format!(
                "memory-backend-file,id=shm{index},mem-path={},size={len},share=on",
                region.display()
            ));
            qemu.args(["-device", &format!("ivshmem-plain,memdev=shm{index}")]);
        }
        for (index, nic) in setup.nics.iter().enumerate() {
            nic.describe(index, &mut qemu);
        }
        qemu.arg("-kernel").arg(image).arg("-initrd").arg(initramfs);
        qemu.args(["-append", COMMAND_LINE]);
        let console = dir.path().join("console");
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        qemu.args(["-serial", "stdio"]);
        let monitor = dir.path().join("monitor");
        qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
        let process = Process::spawn("the machine", &mut qemu);
        Vm { process, monitor: None, seen: 0, dir }
    }

    /// Waits until it takes commands, after it was started or has booted again.
    pub fn wait_ready(&mut self) {
        self.wait_line("[vm] ready");
    }

    /// Does something to the machine from outside: a command of QEMU's monitor.
    #[track_caller]
    pub fn control(&mut self, command: &str, arguments: &Value) -> Value {
        self.monitor().execute(command, arguments)
    }

    /// Waits until QEMU says that something has happened.
    pub fn wait_event(&mut self, name: &str) {
        self.monitor().wait_event(name);
    }

    fn monitor(&mut self) -> &mut Monitor {
        let path = self.dir.path().join("monitor");
        self.monitor.get_or_insert_with(|| Monitor::connect(&path))
    }

    /// Runs a line of shell, which must succeed; what it said.
    #[track_caller]
    pub fn run(&mut self, line: &str) -> String {
        let (status, said) = self.try_run(line);
        assert_eq!(status, 0, "{line}: {said}");
        said
    }

    /// Runs a line of shell: its exit code, and what it said.
    #[track_caller]
    pub fn try_run(&mut self, line: &str) -> (i32, String) {
        self.process.tell(&format!("{line}\n"));
        let (said, end) = self.wait_line("[vm] exit ");
        (end.trim().parse().expect("an exit code"), said)
    }

    /// Runs a line of shell that does not end as one does.
    pub fn tell(&mut self, line: &str) {
        self.process.tell(&format!("{line}\n"));
    }

    /// Has its kernel boot another one, which is told of nothing that the first one did to
    /// the devices; returns when that takes commands.
    pub fn kexec(&mut self) {
        self.tell(&format!("kexec /bin/vmlinuz /bin/initramfs '{COMMAND_LINE}'"));
        self.wait_ready();
    }

    /// What the kernel and programs in the background have said.
    pub fn console(&self) -> String {
        self.file("console")
    }

    /// What QEMU has said of the machine.
    pub fn complaints(&self) -> String {
        self.file("qemu")
    }

    fn file(&self, name: &str) -> String {
        let bytes = std::fs::read(self.dir.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the machine ends by itself.
    pub fn wait_end(&mut self) {
        self.process.wait_for(LIMIT);
    }

    /// Ends it as a loss of power of the machine alone would.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Waits for a line that begins like this: what was said before it, and the rest
    /// of it.
    #[track_caller]
    fn wait_line(&mut self, mark: &str) -> (String, String) {
        let (said, rest, seen) =
            wait::until_for(LIMIT, &format!("the machine says {mark}"), || {
                let all = self.process.output();
                let new = &all[self.seen..];
                if let Some((said, rest)) = new.split_once(mark)
                    && let Some((rest, _)) = rest.split_once('\n')
                {
                    let seen = self.seen + said.len() + mark.len() + rest.len() + 1;
                    return Some((said.to_owned(), rest.to_owned(), seen));
                }
                assert!(self.process.is_alive(), "the machine ended by itself");
                None
            });
        self.seen = seen;
        (said, rest)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the machine's console:\n{}----", self.console());
            eprintln!("---- QEMU said:\n{}----", self.complaints());
        }
    }
}
