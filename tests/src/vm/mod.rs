//! Whole virtual machines: QEMU with Debian's kernel, emulated, so for what
//! works and never for how fast.
//!
//! A machine has regions as virtio-pmem devices and may have a network device
//! that a backend serves. It boots into a shell that takes commands from the
//! second serial port and says how they ended; the kernel's messages go to the
//! first. The programs in it are this workspace's own.

mod initramfs;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::Process;
use crate::require::built;
use crate::wait;

/// How long a machine may take to boot, or a command in it, on a busy host.
const LIMIT: Duration = Duration::from_secs(180);
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

fn only_entry(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .next()
}

/// What a machine is made of.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Programs of this workspace, as for [`built`]; each is found by its last name.
    pub programs: Vec<&'static str>,
    /// Files of regions: the first is `/dev/dax0.0` in the machine.
    pub regions: Vec<PathBuf>,
    /// The socket of the backend that serves its network device, and the device's
    /// address.
    pub network: Option<(PathBuf, String)>,
}

/// A machine that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Vm {
    process: Process,
    /// Bytes of its output that earlier commands have said.
    seen: usize,
    dir: tempfile::TempDir,
}

impl Vm {
    /// Boots a machine, and waits until it takes commands.
    pub fn boot(setup: &Setup) -> Vm {
        let (image, modules) = kernel().expect("the test has asked for it");
        let dir = tempfile::tempdir().expect("a directory can be made");
        let initramfs = dir.path().join("initramfs");
        let programs: Vec<PathBuf> = setup.programs.iter().map(|name| built(name)).collect();
        initramfs::build(&initramfs, &modules, &programs);
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-M", "q35", "-cpu", "max"]);
        qemu.args(["-accel", "tcg,thread=multi", "-m", &format!("{MEMORY},maxmem=4G")]);
        // Memory that a backend can map.
        qemu.args(["-object", &format!("memory-backend-memfd,id=ram,size={MEMORY},share=on")]);
        qemu.args(["-numa", "node,memdev=ram"]);
        for (index, region) in setup.regions.iter().enumerate() {
            let len = region.metadata().expect("the region is there").len();
            qemu.arg("-object").arg(format!(
                "memory-backend-file,id=pm{index},mem-path={},size={len},share=on",
                region.display()
            ));
            qemu.args(["-device", &format!("virtio-pmem-pci,memdev=pm{index}")]);
        }
        if let Some((socket, mac)) = &setup.network {
            qemu.arg("-chardev").arg(format!("socket,id=net,path={}", socket.display()));
            qemu.args(["-netdev", "vhost-user,id=net,chardev=net"]);
            // Without MSI-X: QEMU 7.2, emulating, crashes when a device that is served by
            // another process uses it.
            qemu.args(["-device", &format!("virtio-net-pci,netdev=net,mac={mac},vectors=0")]);
        }
        qemu.arg("-kernel").arg(image).arg("-initrd").arg(initramfs);
        qemu.args(["-append", "console=ttyS0 panic=-1"]);
        let console = dir.path().join("console");
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        qemu.args(["-serial", "stdio"]);
        let mut vm = Vm { process: Process::spawn("the machine", &mut qemu), seen: 0, dir };
        vm.wait_line("[vm] ready");
        vm
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

    /// What the kernel and programs in the background have said.
    pub fn console(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
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
        }
    }
}
