//! Files of one directory, for who asks by an HTTP target.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

/// The longest path within the directory, in bytes.
const PATH_MAX: usize = 1024;

/// The directory.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
}

/// An open file on its way to the peer.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: OwnedFd,
    at: u64,
    left: u64,
    pub(super) media_type: &'static str,
}

impl Root {
    pub(super) fn open(path: &Path) -> io::Result<Root> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Root { directory: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// Opens what a request's target names, if that is a regular file below
    /// the directory. A target that names a directory means its `index.html`.
    ///
    /// The target is decoded and judged before the system sees it: no empty,
    /// hidden or parent component passes. Symbolic links are followed, because
    /// whoever may put them into the directory may put files there as well.
    pub(super) fn find(&self, target: &str) -> Option<OpenFile> {
        let mut space = [0; PATH_MAX];
        let path = decode(target, &mut space)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::openat(&self.directory, path, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        let left = u64::try_from(stat.st_size).ok()?;
        Some(OpenFile { file, at: 0, left, media_type: media_type(path) })
    }
}

impl OpenFile {
    /// Bytes still to be sent.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Reads the next bytes into `out`, all of it or the rest of the file.
    /// Fails if the file has become shorter than its response said.
    pub(super) fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let wanted = self.left.min(out.len() as u64) as usize;
        let mut done = 0;
        while done < wanted {
            match rustix::io::pread(&self.file, &mut out[done..wanted], self.at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    done += count;
                    self.at += count as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.left -= done as u64;
        Ok(done)
    }
}

/// The path that a target names, relative and safe: decoded (RFC 3986 section
/// 2.1), without its query, and with `index.html` where it ends in a slash.
fn decode<'a>(target: &str, space: &'a mut [u8; PATH_MAX]) -> Option<&'a str> {
    let path = target.split(['?', '#']).next()?.strip_prefix('/')?;
    let mut bytes = path.bytes();
    let mut len = 0;
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            (high << 4 | low) as u8
        } else {
            byte
        };
        *space.get_mut(len)? = byte;
        len += 1;
    }
    if len == 0 || space[len - 1] == b'/' {
        let index = b"index.html";
        space.get_mut(len..len + index.len())?.copy_from_slice(index);
        len += index.len();
    }
    let path = std::str::from_utf8(&space[..len]).ok()?;
    let safe = |part: &str| !part.is_empty() && !part.starts_with('.');
    (!path.contains('\0') && path.split('/').all(safe)).then_some(path)
}

fn media_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html" | "htm") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("txt" | "md") => "text/plain; charset=utf-8",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("gif") => "image/gif",
        Some("webp") => "image/webp",
        Some("wasm") => "application/wasm",
        Some("pdf") => "application/pdf",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(target: &str) -> Option<String> {
        decode(target, &mut [0; PATH_MAX]).map(str::to_owned)
    }

    #[test]
    fn targets_become_relative_paths() {
        for (target, wanted) in [
            ("/", "index.html"),
            ("/a/b.txt", "a/b.txt"),
            ("/a/", "a/index.html"),
            ("/a%20b?c=d", "a b"),
            ("/%C3%BC", "ü"),
        ] {
            assert_eq!(path(target).as_deref(), Some(wanted), "{target}");
        }
    }

    #[test]
    fn no_target_leads_out() {
        let long = format!("/{}", "a".repeat(PATH_MAX + 1));
        for target in [
            "",
            "*",
            "http://a/b",
            "/..",
            "/../x",
            "/a/../x",
            "/%2e%2e/x",
            "/a%2f..%2fx",
            "//x",
            "/a//b",
            "/.git/config",
            "/./x",
            "/a%00b",
            "/%",
            "/%4",
            "/%zz",
            "/%ff",
            &long,
        ] {
            assert_eq!(path(target), None, "{target}");
        }
    }

    #[test]
    fn only_regular_files_are_served() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.txt"), "hello").unwrap();
        std::fs::create_dir(directory.path().join("sub")).unwrap();
        let root = Root::open(directory.path()).unwrap();
        let mut file = root.find("/a.txt").unwrap();
        assert_eq!((file.left(), file.media_type), (5, "text/plain; charset=utf-8"));
        let mut out = [0; 3];
        assert_eq!((file.read(&mut out).unwrap(), &out), (3, b"hel"));
        assert_eq!((file.read(&mut out).unwrap(), &out[..2], file.left()), (2, &b"lo"[..], 0));
        assert!(root.find("/sub").is_none());
        assert!(root.find("/sub/").is_none());
        assert!(root.find("/none").is_none());
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, "hello").unwrap();
        let mut file = Root::open(directory.path()).unwrap().find("/a").unwrap();
        std::fs::write(&path, "he").unwrap();
        assert!(file.read(&mut [0; 5]).is_err());
    }
}
