//! A guest whose region has a mirror, in a network and a directory of its own.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::backend::{Backend, Guest, mirrored};
use crate::netns::Namespace;

/// The guest, its network, and its files, which outlive every backend.
#[derive(Debug)]
pub struct Mirrored {
    /// The namespace with the clients' end of the TAP device.
    pub net: Namespace,
    /// The guest.
    pub guest: Guest,
    files: TempDir,
}

impl Mirrored {
    /// A guest with a region of 16 MiB, and these further keys of its region: each
    /// names a file in the directory.
    pub fn new(more: &[(&str, &str)]) -> Mirrored {
        let net = Namespace::new();
        let files = tempfile::tempdir().expect("a directory can be made");
        let mut guest = Guest::number(1);
        let mut region = String::from("size = \"16MiB\"");
        for (key, name) in [("path", "region"), ("mirror", "mirror")].iter().chain(more) {
            let path = files.path().join(name);
            region.push_str(&format!(", {key} = \"{}\"", path.display()));
        }
        guest.more = format!("region = {{ {region} }}\n");
        net.tap_with(&guest.tap, &guest.near_address());
        Mirrored { net, guest, files }
    }

    /// Starts a backend for it.
    pub fn start(&self) -> Backend {
        Backend::start(&self.net, std::slice::from_ref(&self.guest))
    }

    /// Likewise, in the directory of one that has ended.
    pub fn restart(&self, dir: TempDir) -> Backend {
        Backend::start_in(dir, &self.net, std::slice::from_ref(&self.guest))
    }

    /// One of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// What the mirror has of the guest's mapping.
    pub fn mirrored(&self, at: u64, len: usize) -> Vec<u8> {
        mirrored(&self.file("mirror"), at, len)
    }
}
