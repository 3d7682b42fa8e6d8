//! A disk whose file system the kernel itself makes read-only, as it does when it
//! finds it damaged: ext4 on a loop device, which has a switch for that.
//!
//! It is mounted for the calling thread alone and for what that starts, so that
//! nothing of it is left when they have ended, however they did.

#![expect(unsafe_code, reason = "a mount namespace is a thread's")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::thread::UnshareFlags;
use tempfile::TempDir;

/// What is mounted, and the image that it is in.
#[derive(Debug)]
pub struct LoopDisk {
    dir: TempDir,
}

impl LoopDisk {
    /// A file system of `size` bytes. From here on this thread has a mount namespace
    /// of its own.
    pub fn new(size: u64) -> LoopDisk {
        // SAFETY: no file descriptors are unshared, which is what other code could
        // not stand; what this thread has open stays what it is.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }
            .expect("a mount namespace can be made");
        run("mount", &["--make-rprivate"], &[Path::new("/")]);
        let dir = tempfile::tempdir().expect("a directory can be made");
        let disk = LoopDisk { dir };
        let image = File::create(disk.image()).expect("a file can be made");
        image.set_len(size).expect("a file can grow");
        run("mkfs.ext4", &["-q"], &[&disk.image()]);
        std::fs::create_dir(disk.root()).expect("a directory can be made");
        disk.mount();
        disk
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A file on it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn mount(&self) {
        let options = ["-t", "ext4", "-o", "loop,errors=remount-ro"];
        run("mount", &options, &[&self.image(), &self.root()]);
    }

    /// Has the kernel find damage, and make it read-only.
    pub fn damage(&self) {
        let mounts = std::fs::read_to_string("/proc/thread-self/mounts").expect("procfs");
        let root = self.root();
        let root = root.to_str().expect("a path in UTF-8");
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(root));
        let device = line.and_then(|line| line.strip_prefix("/dev/")?.split(' ').next());
        let device = device.expect("it is mounted");
        let switch = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        std::fs::write(switch, "1").expect("the kernel has the switch");
    }

    /// What the start of a system does after that. Nobody has a file open on it.
    pub fn repair(&self) {
        run("umount", &[], &[&self.root()]);
        // 1: errors were there, and are no more.
        let output = Command::new("fsck.ext4").arg("-fp").arg(self.image()).output();
        let output = output.expect("fsck.ext4 runs");
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        self.mount();
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Lazily: a process of a test that failed may still be there.
        let _ = Command::new("umount").arg("--lazy").arg(self.root()).output();
    }
}

fn run(program: &str, arguments: &[&str], paths: &[&Path]) {
    let output = Command::new(program).args(arguments).args(paths).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}
